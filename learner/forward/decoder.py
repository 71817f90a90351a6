"""Decoder layers of the proven families on the fast path when they are given a tree; without one they stay as they are.

    part                  goes through
    norms                 `learner.forward.elementwise.rms_norm`
    rotary embedding      `learner.forward.elementwise.rotary`
    attention             `learner.forward.tree_attention`
    MLP                   `learner.forward.gated_mlp`; with adapters on it, module by module with one `swiglu`

In the last layer only the tokens that predict have a query, an attention output and an MLP: all others are there for
their keys and values. The layer then answers with [1, predicting tokens, width] in place of [1, tokens, width].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from learner.forward import gated_mlp
from learner.forward.elementwise import rms_norm, rotary, swiglu
from learner.forward.tree import Segment
from learner.forward.tree_attention import tree_attention

PARTS = {
    "LlamaDecoderLayer": ("LlamaAttention", "LlamaMLP", "LlamaRMSNorm"),
    "MistralDecoderLayer": ("MistralAttention", "MistralMLP", "MistralRMSNorm"),
    "Qwen2DecoderLayer": ("Qwen2Attention", "Qwen2MLP", "Qwen2RMSNorm"),
    "Qwen2_5_VLDecoderLayer": ("Qwen2_5_VLAttention", "Qwen2MLP", "Qwen2_5_VLRMSNorm"),
    "Qwen3VLTextDecoderLayer": (
        "Qwen3VLTextAttention",
        "Qwen3VLTextMLP",
        "Qwen3VLTextRMSNorm",
    ),
}
"""Layer classes whose forward is written here, with the classes of their attention, MLP and norm."""


def why_not(language_model: Any, vision_config: Any) -> str | None:
    """The reason why a language model's layers cannot be exchanged, None if they can."""
    for layer in language_model.layers:
        parts = (layer.self_attn, layer.mlp, layer.input_layernorm)
        part_names = tuple(type(part).__name__ for part in parts)
        layer_name = type(layer).__name__
        if PARTS.get(layer_name) != part_names:
            known = ", ".join(PARTS)
            return f"no proof for layers of the kind {layer_name}, only for {known}"
    # Qwen3-VL adds DeepStack features to all tokens behind its first layers; the last layer has no longer all tokens.
    deepstack_blocks = getattr(vision_config, "deepstack_visual_indexes", ())
    if len(deepstack_blocks) >= len(language_model.layers):
        return "pictures are added behind the last layer"
    activation = language_model.config.hidden_act
    if activation not in ("silu", "swish"):
        return f"the language model's activation is {activation}, not silu"
    return None


def is_installed(language_model: Any) -> bool:
    """Whether the last layer takes `predicting` [positions], and answers for those tokens alone."""
    return "forward" in vars(language_model.layers[-1])


def install(language_model: Any) -> None:
    """Exchange the forward of every norm, attention and MLP, and of the last layer.

    Module by module, so that hooks on modules (ZeRO-3, gradient checkpointing, LoRA) stay in place.
    """
    norm_class = type(language_model.norm)
    for module in language_model.modules():
        if type(module) is norm_class:
            module.forward = partial(_norm_forward, module)
    for layer in language_model.layers:
        layer.self_attn.forward = partial(_attention_forward, layer.self_attn)
        layer.mlp.forward = partial(_mlp_forward, layer.mlp)
    last = language_model.layers[-1]
    last.forward = partial(_last_layer_forward, last)


# Parameters are named as transformers' layers pass them.


def _norm_forward(norm: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, norm.weight, norm.variance_epsilon)


def _mlp_forward(mlp: Any, x: Tensor) -> Tensor:
    if gated_mlp.can_fuse(mlp):
        return gated_mlp.gated_mlp(mlp, x)
    # Adapters on a projection: the modules are called, the element-wise part is still one function.
    gate = mlp.gate_proj(x)
    up = mlp.up_proj(x)
    inner = swiglu(gate, up)
    return mlp.down_proj(inner)  # type: ignore[no-any-return]


def _attention_forward(
    attention: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    tree: Sequence[Segment] | None = None,
    query_positions: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention within the segments of `tree`.

    Args:
        hidden_states: [1, tokens, width].
        position_embeddings: cos and sin, [1, tokens, head width].
        query_positions: of the only tokens with a query and an output; None for all tokens. Not named `predicting`:
            transformers passes that on to every layer, and the last one alone may act on it.
    """
    if tree is None:
        plain_forward = type(attention).forward
        return plain_forward(  # type: ignore[no-any-return]
            attention,
            hidden_states,
            position_embeddings=position_embeddings,
            **kwargs,
        )
    cos, sin = position_embeddings
    query_hidden, query_cos, query_sin = hidden_states, cos, sin
    predictors_only = query_positions is not None
    if predictors_only:
        query_hidden = hidden_states[:, query_positions]
        query_cos = cos[:, query_positions]
        query_sin = sin[:, query_positions]
    # [1, heads, tokens, head width]; positions are turned into queries and keys, values have none.
    query = _heads(attention, "q", query_hidden)
    query = rotary(query, query_cos, query_sin)
    key = _heads(attention, "k", hidden_states)
    key = rotary(key, cos, sin)
    value = _heads(attention, "v", hidden_states)
    output, _ = tree_attention(
        attention,
        query,
        key,
        value,
        attention_mask=None,
        dropout=attention.attention_dropout if attention.training else 0.0,
        scaling=attention.scaling,
        tree=tree,
        predictors_only=predictors_only,
    )
    # [1, queries, heads, head width] -> [1, queries, width]
    output = output.reshape(*query_hidden.shape[:-1], -1)
    return attention.o_proj(output), None


def _heads(
    attention: Any,
    name: str,
    hidden: Tensor,
) -> Tensor:
    """Queries, keys or values ("q", "k", "v") of hidden [1, tokens, width] as [1, heads, tokens, head width]."""
    projection: nn.Module = getattr(attention, f"{name}_proj")
    states = projection(hidden)
    states = states.view(*hidden.shape[:-1], -1, attention.head_dim)
    # Qwen3 has norms for queries and keys.
    norm: nn.Module | None = getattr(attention, f"{name}_norm", None)
    if norm is not None:
        states = norm(states)
    return states.transpose(1, 2)  # type: ignore[no-any-return]


def _last_layer_forward(
    layer: Any,
    hidden_states: Tensor,
    predicting: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """Output [1, predicting tokens, width]; [1, tokens, width] if no `predicting` positions are given."""
    if predicting is None:
        return type(layer).forward(layer, hidden_states, **kwargs)  # type: ignore[no-any-return]
    normed = layer.input_layernorm(hidden_states)
    attended, _ = layer.self_attn(
        hidden_states=normed,
        query_positions=predicting,
        **kwargs,
    )
    # The residual stream, from here on of predicting tokens alone.
    hidden = hidden_states[:, predicting] + attended
    normed = layer.post_attention_layernorm(hidden)
    return hidden + layer.mlp(normed)  # type: ignore[no-any-return]

"""Decoder layers of the proven families on the fast path, when they are given a tree; without one they are as ever.

Norms and rotary embedding go through `learner.elementwise`, the MLP through `learner.gated_mlp` or, where adapters sit
on it, module by module with one SwiGLU. In the last layer only the positions that somebody asks for have a query, an
attention output and an MLP: all others are there for their keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from learner import gated_mlp
from learner.elementwise import rms_norm, rotary, swiglu
from learner.tree import Segment
from learner.tree_attention import tree_attention

PARTS = {
    "LlamaDecoderLayer": ("LlamaAttention", "LlamaMLP", "LlamaRMSNorm"),
    "Qwen2_5_VLDecoderLayer": ("Qwen2_5_VLAttention", "Qwen2MLP", "Qwen2_5_VLRMSNorm"),
    "Qwen3VLTextDecoderLayer": (
        "Qwen3VLTextAttention",
        "Qwen3VLTextMLP",
        "Qwen3VLTextRMSNorm",
    ),
}
"""Layers whose forward is written here: attention, MLP and norm of each."""


def why_not(language_model: Any, vision_config: Any) -> str | None:
    """Why a language model's layers cannot be exchanged, None if they can."""
    for layer in language_model.layers:
        name = type(layer).__name__
        found = tuple(
            type(part).__name__
            for part in (layer.self_attn, layer.mlp, layer.input_layernorm)
        )
        if PARTS.get(name) != found:
            return (
                f"no proof for layers of the kind {name}, only for {', '.join(PARTS)}"
            )
    if len(getattr(vision_config, "deepstack_visual_indexes", ())) >= len(
        language_model.layers
    ):
        return "pictures are added behind the last layer"
    act = language_model.config.hidden_act
    return (
        None
        if act in ("silu", "swish")
        else f"the language model's activation is {act}, not silu"
    )


def is_installed(language_model: Any) -> bool:
    """Whether the last layer takes `predicting` [positions], and answers for them alone."""
    return "forward" in vars(language_model.layers[-1])


def install(language_model: Any) -> None:
    """Exchange forwards, module by module: hooks on modules (ZeRO-3, gradient checkpointing, LoRA) stay in place."""
    norms = {type(language_model.norm)}
    for module in language_model.modules():
        if type(module) in norms:
            module.forward = partial(_norm, module)
    for layer in language_model.layers:
        layer.self_attn.forward = partial(_attention, layer.self_attn)
        layer.mlp.forward = partial(_mlp, layer.mlp)
    last = language_model.layers[-1]
    last.forward = partial(_last_layer, last)


def _norm(norm: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, norm.weight, norm.variance_epsilon)


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    if gated_mlp.can_fuse(mlp):
        return gated_mlp.gated_mlp(mlp, x)
    return mlp.down_proj(swiglu(mlp.gate_proj(x), mlp.up_proj(x)))  # type: ignore[no-any-return]


def _attention(
    attention: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    tree: Sequence[Segment] | None = None,
    asking: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """`asking` [positions] are the only ones with a query and an output; None: all."""
    if tree is None:
        plain = type(attention).forward
        outputs: tuple[Tensor, Tensor | None] = plain(
            attention, hidden_states, position_embeddings=position_embeddings, **kwargs
        )
        return outputs
    cos, sin = position_embeddings
    asked = hidden_states if asking is None else hidden_states[:, asking]
    ask_cos, ask_sin = (
        (cos, sin) if asking is None else (cos[:, asking], sin[:, asking])
    )
    query = rotary(_heads(attention, "q", asked), ask_cos, ask_sin)
    key = rotary(_heads(attention, "k", hidden_states), cos, sin)
    value = _heads(attention, "v", hidden_states)
    dropout = attention.attention_dropout if attention.training else 0.0
    found, _ = tree_attention(
        attention,
        query,
        key,
        value,
        None,
        dropout,
        attention.scaling,
        tree,
        predictors_only=asking is not None,
    )
    return attention.o_proj(found.reshape(*asked.shape[:-1], -1)), None


def _heads(attention: Any, name: str, hidden: Tensor) -> Tensor:
    """[1, heads, tokens, width] of queries, keys or values; Qwen3 norms the first two."""
    states = getattr(attention, f"{name}_proj")(hidden).view(
        *hidden.shape[:-1], -1, attention.head_dim
    )
    norm: nn.Module | None = getattr(attention, f"{name}_norm", None)
    return (states if norm is None else norm(states)).transpose(1, 2)  # type: ignore[no-any-return]


def _last_layer(
    layer: Any, hidden_states: Tensor, predicting: Tensor | None = None, **kwargs: Any
) -> Tensor:
    """Output [1, positions, width] for the predicting positions; for all if there are none given."""
    if predicting is None:
        return type(layer).forward(layer, hidden_states, **kwargs)  # type: ignore[no-any-return]
    normed = layer.input_layernorm(hidden_states)
    attended, _ = layer.self_attn(hidden_states=normed, asking=predicting, **kwargs)
    hidden = hidden_states[:, predicting] + attended
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))  # type: ignore[no-any-return]

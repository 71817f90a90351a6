"""Log-probs of a `TreeBatch` under a Hugging Face vision-language model, equal to the plain two-row forward.

flat row [1, tokens] -> body (tree attention, own positions) -> hidden [predicting tokens, width]
                     -> head at predicting tokens only -> one log-prob per completion token
                     -> rows [rows, columns]
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from common.model_parts import language_model
from learner.forward import decoder
from learner.forward.logps import CompletionLogps, token_logps
from learner.forward.tree import Media, TreeBatch
from learner.forward.tree_attention import NAME, install
from learner.model.vision_features import VisionShare, encoder_outputs

PROVEN = (
    "internvl",
    "llava",
    "llava_next",
    "mistral3",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
)
"""Families for which tests prove the equality."""
_NOT_FULL = {
    "linear_attention": "linear attention, whose state after a prompt no mask can hand to its answers",
    "sliding_attention": "a sliding window",
    "chunked_attention": "attention within chunks",
}


def why_not(model: Any) -> str | None:
    """The reason why a model cannot go through trees, None if it can."""
    reason = _against_merging(model) or _against_attention(language_model(model).config)
    if reason is not None:
        return reason
    family = model.config.model_type
    if family not in PROVEN:
        return f"no proof for the family {family}, only for {', '.join(PROVEN)}"
    return None


def _against_merging(model: Any) -> str | None:
    """Why a row's image features cannot be given to a model from outside, with causal attention among them."""
    parameters = inspect.signature(model.model.forward).parameters
    if "token_type_ids" in parameters:
        return "image tokens attend to each other in both directions"
    if "mm_encoder_outputs" not in parameters:
        return f"transformers' {type(model.model).__name__} takes no image features"
    return None


def _against_attention(config: Any) -> str | None:
    """Why a language model's attention is not that of a tree: full, causal, with a plain softmax."""
    # Without the attribute, or with None, all layers attend fully.
    layer_types = set(getattr(config, "layer_types", None) or [])
    other_types = sorted(layer_types - {"full_attention"})
    if other_types:
        names = [_NOT_FULL.get(name, name) for name in other_types]
        return f"the language model has layers with {', '.join(names)}"
    # Families without the switch use a window as soon as there is one.
    uses_window = getattr(config, "use_sliding_window", True)
    window = getattr(config, "sliding_window", None)
    if uses_window and window:
        return "the language model attends through a sliding window"
    if getattr(config, "attn_logit_softcapping", None):
        return "the language model caps its attention scores"
    return None


def prepare(model: Any, fused_layers: bool = False) -> None:
    """Make a model ready for trees; once per model, before its first tree.

    Args:
        fused_layers: exchange the decoder layers' forward, which `learner.forward.decoder.why_not` must allow.
    """
    install(language_model(model))
    if fused_layers:
        decoder.install(language_model(model))


def tree_logps(
    model: Any,
    batch: TreeBatch,
    fused: bool = True,
    shared: VisionShare | None = None,
) -> CompletionLogps:
    """Log-probs of every row's completion; `prepare` must have seen the model.

    Args:
        fused: let `learner.forward.head` make logits and gradients, where the head allows it.
        shared: what policy and reference share of the vision side.
    """
    text_model = language_model(model)
    assert text_model.config._attn_implementation == NAME, "prepare(model) comes first"
    # Positions depend on the batch and the family only: policy and reference share them.
    if "positions" not in batch.memo:
        batch.memo["positions"] = positions(model, batch)
        batch.memo["predicting"] = torch.unique(batch.predictors, return_inverse=True)
    # Sorted distinct predictors, and where each completion token's predictor is among them: a prompt's last token
    # predicts for several completions.
    predicting, places = batch.memo["predicting"]
    if not decoder.is_installed(text_model):
        # The plain last layer answers for all tokens.
        predicting = None
        places = batch.predictors
    output = model.model(
        input_ids=batch.input_ids,
        # Every family takes a four-dimensional mask as it is. Without one it would make a mask of its own, and read
        # packed sequences out of positions that start anew.
        attention_mask=batch.input_ids.new_zeros(1, 1, 1, 1),
        position_ids=batch.memo["positions"],
        use_cache=False,
        mm_encoder_outputs=encoder_outputs(model, batch, shared),
        tree=batch.segments,
        predicting=predicting,
    )
    # [predicting tokens, width], or [tokens, width] of the plain last layer
    hidden = output.last_hidden_state[0]
    # [completion tokens]
    logps = token_logps(model.lm_head, hidden[places], batch.targets, fused)
    # [rows, columns]
    rows = logps[batch.places].masked_fill(~batch.mask, 0.0)
    return CompletionLogps(rows, batch.mask)


def positions(model: Any, batch: TreeBatch) -> Tensor:
    """Position ids [1, tokens], or [3, 1, tokens] for M-RoPE; every completion goes on behind its prompt.

    prompt 3, completions 2 and 1:      0 1 2   3 4   3
    """
    # Only M-RoPE has positions in time, height and width.
    is_spatial = hasattr(model.model, "get_rope_index")
    num_axes = 3 if is_spatial else 1
    device = batch.input_ids.device
    # [axes, tokens] each
    parts: list[Tensor] = []
    for index, segment in enumerate(batch.segments):
        media_index = batch.media_of[index]
        if is_spatial and media_index is not None:
            media = batch.media[media_index]
            prompt = _spatial_positions(model, batch, index, media)
        else:
            prompt = torch.arange(segment.prompt, device=device)
            prompt = prompt.expand(num_axes, -1)
        parts.append(prompt)
        # In M-RoPE an image's positions grow slower than its number of tokens.
        first = int(prompt.max()) + 1
        for length in segment.lengths:
            completion = torch.arange(first, first + length, device=prompt.device)
            parts.append(completion.expand(num_axes, -1))
    joint = torch.cat(parts, 1)
    if is_spatial:
        return joint[:, None]
    return joint


def _spatial_positions(
    model: Any,
    batch: TreeBatch,
    index: int,
    media: Media,
) -> Tensor:
    """M-RoPE positions [3, prompt tokens] of a segment's prompt: time, height and width of image tokens."""
    segment = batch.segments[index]
    prompt_end = segment.start + segment.prompt
    prompt_ids = batch.input_ids[:, segment.start : prompt_end]
    # How many patches an image has in time, height and width.
    grid_names = [name for name in media.inputs if name.endswith("grid_thw")]
    grids = {name: media.inputs[name] for name in grid_names}
    indices, _ = model.model.get_rope_index(
        input_ids=prompt_ids,
        **batch.prompt_types[index],
        **grids,
    )
    # [3, 1, prompt tokens]
    return indices[:, 0]  # type: ignore[no-any-return]

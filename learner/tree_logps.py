"""Log-probs of a `TreeBatch` under a Hugging Face vision-language model, equal to the plain two-row forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.model_parts import language_model
from learner import decoder
from learner.logps import CompletionLogps, token_logps
from learner.tree import TreeBatch
from learner.tree_attention import NAME, install
from learner.vision import VisionShare, encoder_outputs

PROVEN = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl")
"""Families for which tests prove the equality."""


def why_not(model: Any) -> str | None:
    """Why a model cannot go through trees, None if it can."""
    family = model.config.model_type
    if family not in PROVEN:
        return f"no proof for the family {family}, only for {', '.join(PROVEN)}"
    config = model.config.text_config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"the language model has layers of {sorted(kinds - {'full_attention'})}"
    if getattr(config, "use_sliding_window", True) and getattr(
        config, "sliding_window", None
    ):
        return "the language model attends through a sliding window"
    return None


def prepare(model: Any, fused_layers: bool = False) -> None:
    """Once per model, before its first tree; `fused_layers` if `learner.decoder` has nothing against it."""
    install(language_model(model))
    if fused_layers:
        decoder.install(language_model(model))


def tree_logps(
    model: Any, batch: TreeBatch, fused: bool = True, shared: VisionShare | None = None
) -> CompletionLogps:
    """Log-probs of every row's completion; `prepare` must have seen the model.

    Args:
        fused: let `learner.head` make logits and gradients, where the head allows it.
        shared: what policy and reference have in common of the vision side.
    """
    assert language_model(model).config._attn_implementation == NAME, (
        "prepare(model) comes first"
    )
    if "positions" not in batch.memo:
        batch.memo["positions"] = positions(model, batch)
        batch.memo["predicting"] = torch.unique(batch.predictors, return_inverse=True)
    predicting, places = batch.memo["predicting"]
    if not decoder.is_installed(language_model(model)):
        predicting, places = None, batch.predictors
    hidden = model.model(
        input_ids=batch.input_ids,
        # Four dimensions: taken as it is by every family, so that no mask is made from positions that start anew.
        attention_mask=batch.input_ids.new_zeros(1, 1, 1, 1),
        position_ids=batch.memo["positions"],
        use_cache=False,
        mm_encoder_outputs=encoder_outputs(model, batch, shared),
        tree=batch.segments,
        predicting=predicting,
    ).last_hidden_state[0]
    values = token_logps(model.lm_head, hidden[places], batch.targets, fused)
    return CompletionLogps(
        values[batch.places].masked_fill(~batch.mask, 0.0), batch.mask
    )


def positions(model: Any, batch: TreeBatch) -> Tensor:
    """Position ids [1, tokens], or [3, 1, tokens] for M-RoPE; every completion goes on behind its prompt."""
    spatial = hasattr(model.model, "get_rope_index")
    parts: list[Tensor] = []
    for index, segment in enumerate(batch.segments):
        prompt = torch.arange(segment.prompt, device=batch.input_ids.device).expand(
            3 if spatial else 1, -1
        )
        number = batch.media_of[index]
        if spatial and number is not None:
            ids = batch.input_ids[:, segment.start : segment.start + segment.prompt]
            grids = {
                name: v
                for name, v in batch.media[number].inputs.items()
                if name.endswith("grid_thw")
            }
            prompt = model.model.get_rope_index(
                input_ids=ids, **batch.prompt_types[index], **grids
            )[0][:, 0]
        first = int(prompt.max()) + 1
        parts += [prompt]
        parts += [
            torch.arange(first, first + length, device=prompt.device).expand(
                len(prompt), -1
            )
            for length in segment.lengths
        ]
    found = torch.cat(parts, 1)
    return found[:, None] if spatial else found

"""What LoRA's adapters are called, what they add, and what a model is with them merged."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from common.config import Lora
from learner.model.merging import Survival, merged_weight

Tensors = dict[str, Tensor]
Weights = Mapping[str, Tensor]
"""Parameters by name."""

# peft's names: net.base_model.model.<name>.{lora_A.default, lora_B.default, base_layer}.weight
_LORA_PREFIX = "base_model.model."
_LORA_A = ".lora_A.default.weight"
_LORA_B = ".lora_B.default.weight"
_LORA_BASE = ".base_layer.weight"


def merge_lora(
    weights: Weights,
    tuning: Lora,
    survival: Survival | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensors, Tensors]:
    """Merged and base weights by Hugging Face name, from the gathered weights of a peft model; no input is changed.

    Args:
        survival: is told of every matrix that is merged.
        device: that computes, one matrix at a time: 7B takes the host's cores minutes.
    """
    merged: Tensors = {}
    base: Tensors = {}
    scale = tuning.alpha / tuning.r
    for peft_name, weight in weights.items():
        if is_adapter(peft_name):
            continue
        name, name_of_a, name_of_b = plain_name(peft_name)
        assert name is not None, "no adapter's"
        base[name] = weight
        merged[name] = weight
        if name_of_a in weights:
            a, b = weights[name_of_a].to(device), weights[name_of_b].to(device)
            there = merged_weight(weight.to(device), a, b, scale, survival)
            merged[name] = there.cpu()
    return merged, base


def plain_name(peft_name: str) -> tuple[str | None, str, str]:
    """A parameter's name in the Hugging Face model, and the names of its layer's adapter; None for an adapter's."""
    if is_adapter(peft_name):
        return None, "", ""
    layer = peft_name.removesuffix(_LORA_BASE)
    name = peft_name.removeprefix(_LORA_PREFIX).replace(".base_layer.", ".")
    return name, layer + _LORA_A, layer + _LORA_B


def is_adapter(name: str) -> bool:
    """Whether a parameter of a peft model is an adapter's."""
    return name.endswith((_LORA_A, _LORA_B))


def adapter_weights(weights: Weights) -> Tensors:
    """The adapter's tensors of a peft model under the names that peft's own files have."""
    adapter = {}
    for name, weight in weights.items():
        if is_adapter(name):
            adapter[name.replace(".default.", ".")] = weight
    return adapter


def adapter_norm(weights: Weights, tuning: Lora) -> float:
    """L2 norm of what the adapters add, over all layers; no product B·A is made.

    |B·A|² = tr(AᵀBᵀBA) = sum of (BᵀB) ∘ (AAᵀ), matrices of r x r.
    """
    total = 0.0
    for name, weight in weights.items():
        if not name.endswith(_LORA_A):
            continue
        layer = name.removesuffix(_LORA_A)
        b = weights[layer + _LORA_B].float()
        largest = float(b.abs().max())
        if largest == 0:
            continue
        a = weight.float()
        # The squares of a young adapter's values are zero in float32.
        b = b / largest
        # [r, r] both
        b_gram = (b.T @ b).double()
        a_gram = (a @ a.T).double()
        total += largest**2 * float((b_gram * a_gram).sum())
    # Rounding may leave a sum of squares a little below zero.
    norm = math.sqrt(max(total, 0.0))
    return tuning.alpha / tuning.r * norm

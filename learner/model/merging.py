"""Merging adapters into weights, and how much of them the rounding to the weights' dtype leaves."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_NUMEL = 1 << 22


class Survival:
    """The share of an update that is left of it after rounding, over all matrices that it is told of.

    With ΔW the exact update and round(W + ΔW) − W the one that is applied, the share is

        Σ ⟨round(W + ΔW) − W, ΔW⟩ / Σ ⟨ΔW, ΔW⟩

    1 where nothing is lost, 0 where every weight is rounded back to what it was. bfloat16 has 8 significant bits: an
    update below a 512th of its weight is lost. What rounding adds in other directions is noise, and does not count.
    """

    def __init__(self) -> None:
        self._applied = 0.0
        self._exact = 0.0

    def add(self, weight: Tensor, update: Tensor, merged: Tensor) -> None:
        """Count one matrix: W, ΔW in float32, and the merged weight in W's dtype."""
        weights = weight.reshape(-1).split(_CHUNK_NUMEL)
        updates = update.reshape(-1).split(_CHUNK_NUMEL)
        results = merged.reshape(-1).split(_CHUNK_NUMEL)
        for before, exact, after in zip(weights, updates, results, strict=True):
            applied = after.float() - before.float()
            self._applied += float(torch.dot(applied, exact))
            self._exact += float(torch.dot(exact, exact))

    @property
    def share(self) -> float | None:
        """None before there is an update."""
        return self._applied / self._exact if self._exact else None


def merged_weight(
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float,
    survival: Survival | None = None,
) -> Tensor:
    """W + scale·B·A, computed in float32 and rounded once to W's dtype (arXiv 2106.09685, section 4.1).

    Args:
        weight: W, [output width, input width].
        a: A, [r, input width].
        b: B, [output width, r].
        scale: alpha / r.
        survival: is told of the matrix.
    """
    update = scale * (b.float() @ a.float())
    merged = (weight.float() + update).to(weight.dtype)
    if survival is not None:
        survival.add(weight, update, merged)
    return merged

"""AdamW, warm-up and learning-rate schedule: one definition for all engines, so that they cannot disagree."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from common.config import Optimizer as OptimizerConfig


def lr_factor(
    config: OptimizerConfig,
    num_steps: int,
    update: int,
) -> float:
    """Share of `lr` for the update of this number, from 0: linear warm-up, then the schedule down to 0.

    Warm-up ends at update `warmup_steps`, and begins above 0, so that no update is wasted.
    """
    warmup_steps = config.warmup_steps
    if update < warmup_steps:
        return (update + 1) / (warmup_steps + 1)
    if config.schedule == "constant":
        return 1.0
    num_decay_steps = max(1, num_steps - warmup_steps)
    steps_of_decay = update - warmup_steps
    progress = min(1.0, steps_of_decay / num_decay_steps)
    if config.schedule == "linear":
        return 1.0 - progress
    # Half a cosine: 1 at the start, 0 at the end.
    return 0.5 * (1 + math.cos(math.pi * progress))


def build_schedule(
    optimizer: torch.optim.Optimizer,
    config: OptimizerConfig,
    num_steps: int,
) -> LambdaLR:
    """`lr_factor` as a scheduler; it moves once per applied update."""

    def factor(update: int) -> float:
        return lr_factor(config, num_steps, update)

    return LambdaLR(optimizer, factor)


def adamw_options(config: OptimizerConfig) -> dict[str, Any]:
    """Keyword arguments of torch's AdamW."""
    return {
        "lr": config.lr,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
    }


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that first clips the global gradient norm, and changes nothing when that norm is not finite.

    DeepSpeed reads `overflow` and `_global_grad_norm` under these names.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        config: OptimizerConfig,
    ) -> None:
        super().__init__(params, fused=True, **adamw_options(config))
        self._max_grad_norm = config.max_grad_norm
        self._global_grad_norm = 0.0
        self.overflow = False

    @property
    def grad_norm(self) -> float:
        """Global gradient norm before clipping, of the last step."""
        return self._global_grad_norm

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Clip and update, or set `overflow` and change nothing. Gradients must be averaged over ranks already."""
        parameters: list[torch.nn.Parameter] = []
        for group in self.param_groups:
            parameters += group["params"]
        for parameter in parameters:
            # As in ZeRO: a parameter that the batch did not use goes on with its momentum. AdamW would leave it out.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._max_grad_norm)
        self._global_grad_norm = float(norm)
        self.overflow = not math.isfinite(self._global_grad_norm)
        if not self.overflow:
            super().step()

"""AdamW, warm-up and schedule: one definition for every engine, so that engines cannot disagree."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from common.config import Optimizer as OptimizerConfig


def lr_factor(config: OptimizerConfig, num_steps: int, update: int) -> float:
    """Share of `lr` for update number `update` (from 0): linear warm-up that never is 0, then the schedule to 0."""
    if update < config.warmup_steps:
        return (update + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return 1.0
    progress = min(
        1.0, (update - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    )
    if config.schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1 + math.cos(math.pi * progress))


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, num_steps: int
) -> LambdaLR:
    """`lr_factor` as a scheduler; it moves once per applied update."""
    return LambdaLR(optimizer, lambda update: lr_factor(config, num_steps, update))


def adamw_options(config: OptimizerConfig) -> dict[str, Any]:
    """Keyword arguments of torch's AdamW."""
    return {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that clips the global gradient norm first and leaves everything as it is when that norm is not finite.

    `overflow` and `_global_grad_norm` are the names under which DeepSpeed looks for both facts.
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter], config: OptimizerConfig
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
        """Clip and update, or count as overflow. Gradients must already be averaged over ranks."""
        parameters = [
            parameter for group in self.param_groups for parameter in group["params"]
        ]
        for parameter in parameters:
            if (
                parameter.grad is None
            ):  # as in ZeRO: what a batch does not use goes on with its momentum
                parameter.grad = torch.zeros_like(parameter)
        self._global_grad_norm = float(
            torch.nn.utils.clip_grad_norm_(parameters, self._max_grad_norm)
        )
        self.overflow = not math.isfinite(self._global_grad_norm)
        if not self.overflow:
            super().step()

"""The training engine in plain torch: one process, float32. The yardstick for the DeepSpeed engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from common.config import Learner as LearnerConfig
from common.errors import UserError
from learner.optimizer import ClippedAdamW, build_schedule

STATE_FILE = "engine.pt"


class TorchEngine:
    """Implements `common.protocols.TrainEngine`.

    Args:
        module: the policy, already on its device.
        config: optimizer, schedule and number of steps.

    Raises:
        UserError: several ranks or weights that are not float32 (AdamW's steps would round away in bfloat16).
    """

    rank = 0
    world_size = 1

    def __init__(self, module: nn.Module, config: LearnerConfig) -> None:
        dtypes = {
            parameter.dtype
            for parameter in module.parameters()
            if parameter.requires_grad
        }
        if config.num_ranks > 1 or not dtypes <= {torch.float32, torch.float64}:
            raise UserError(
                f"learner.engine: torch expects 1 rank and float32 weights, got {config.num_ranks} and "
                f"{sorted(map(str, dtypes))}; set learner.engine = deepspeed"
            )
        self._module = module
        self._optimizer = ClippedAdamW(
            (p for p in module.parameters() if p.requires_grad), config.optimizer
        )
        self._schedule = build_schedule(
            self._optimizer, config.optimizer, config.num_steps
        )

    @property
    def module(self) -> nn.Module:
        """What is called for the forward pass."""
        return self._module

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's share of the loss."""
        loss.backward()

    def step(self) -> Mapping[str, float]:
        """Clip, update, schedule, zero the gradients. Non-finite gradients: no update, `skipped` is 1."""
        lr = float(self._schedule.get_last_lr()[0])
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if not self._optimizer.overflow:
            self._schedule.step()
        return {
            "grad_norm": self._optimizer.grad_norm,
            "lr": lr,
            "skipped": float(self._optimizer.overflow),
        }

    def gather_weights(
        self, wanted: Callable[[str], bool] = lambda name: True
    ) -> Mapping[str, Tensor] | None:
        """Copies of all parameters on the CPU, tied ones under each of their names."""
        return {
            name: weight.to("cpu", copy=True)
            for name, weight in self.gathered(self._module, wanted)
        }

    def place_frozen(self, module: nn.Module) -> nn.Module:
        """The module itself, on the policy's device."""
        return module.to(next(self._module.parameters()).device)

    def gathered(
        self, module: nn.Module, wanted: Callable[[str], bool] = lambda name: True
    ) -> Iterator[tuple[str, Tensor]]:
        """Parameters by name, tied ones under each of their names."""
        named = module.named_parameters(remove_duplicate=False)
        return ((name, each.detach()) for name, each in named if wanted(name))

    def save(self, directory: Path) -> None:
        """Trainable weights, optimizer and schedule."""
        directory.mkdir(parents=True, exist_ok=True)
        state = {
            "weights": self._trainable(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        torch.save(state, directory / STATE_FILE)

    def load(self, directory: Path) -> None:
        """Go on from `save` (raises what torch raises; the learner says it in one line)."""
        state = torch.load(
            directory / STATE_FILE, map_location="cpu", weights_only=True
        )
        own = self._trainable()
        if own.keys() != state["weights"].keys():
            raise ValueError(
                f"other trainable weights: {len(state['weights'])} saved, {len(own)} here"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state["weights"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])

    def close(self) -> None:
        """Nothing to hand back."""

    def _trainable(self) -> dict[str, Tensor]:
        return {
            name: parameter.data
            for name, parameter in self._module.named_parameters()
            if parameter.requires_grad
        }

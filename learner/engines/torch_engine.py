"""The training engine in plain torch: one process, float32. Tests measure the DeepSpeed engine against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from common.config import Learner as LearnerConfig
from common.errors import UserError
from learner.engines.optimizer import ClippedAdamW, build_schedule

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

    def __init__(
        self,
        module: nn.Module,
        config: LearnerConfig,
    ) -> None:
        trainable = [weight for weight in module.parameters() if weight.requires_grad]
        dtypes = {weight.dtype for weight in trainable}
        wide_enough = dtypes <= {torch.float32, torch.float64}
        if config.num_ranks > 1 or not wide_enough:
            raise UserError(
                f"learner.engine: torch expects 1 rank and float32 weights, got {config.num_ranks} and "
                f"{sorted(map(str, dtypes))}; set learner.engine = deepspeed"
            )
        self._module = module
        self._optimizer = ClippedAdamW(trainable, config.optimizer)
        self._schedule = build_schedule(
            self._optimizer,
            config.optimizer,
            config.num_steps,
        )

    @property
    def module(self) -> nn.Module:
        """The module to call for the forward pass."""
        return self._module

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's share of the loss."""
        loss.backward()

    def step(self) -> Mapping[str, float]:
        """Clip, update, schedule, zero the gradients. Non-finite gradients: no update, `skipped` is 1."""
        # Read before the step, which moves the schedule on.
        lr = float(self._schedule.get_last_lr()[0])
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        # The schedule counts applied updates.
        if not self._optimizer.overflow:
            self._schedule.step()
        return {
            "grad_norm": self._optimizer.grad_norm,
            "lr": lr,
            "skipped": float(self._optimizer.overflow),
        }

    def gather_weights(
        self,
        wanted: Callable[[str], bool] = lambda name: True,
    ) -> Mapping[str, Tensor] | None:
        """Copies of the wanted parameters on the CPU, tied ones under each of their names."""
        weights = {}
        for name, weight in self.gathered(self._module, wanted):
            weights[name] = weight.to("cpu", copy=True)
        return weights

    def place_frozen(self, module: nn.Module) -> nn.Module:
        """The module itself, on the policy's device."""
        first = next(self._module.parameters())
        return module.to(first.device)

    def gathered(
        self,
        module: nn.Module,
        wanted: Callable[[str], bool] = lambda name: True,
    ) -> Iterator[tuple[str, Tensor]]:
        """The wanted parameters by name, tied ones under each of their names."""
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if wanted(name):
                yield name, parameter.detach()

    def whole(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        """They always are."""
        return nullcontext()

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
        """Go on from a `save`.

        Raises:
            ValueError: other weights train here than in the saved run. Other errors are torch's own; the learner turns
                all of them into one line.
        """
        file = directory / STATE_FILE
        state = torch.load(file, map_location="cpu", weights_only=True)
        saved = state["weights"]
        trainable = self._trainable()
        if trainable.keys() != saved.keys():
            raise ValueError(
                f"other trainable weights: {len(saved)} saved, {len(trainable)} here"
            )
        # Into the parameters themselves: the optimizer holds on to them.
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(saved[name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])

    def close(self) -> None:
        """Nothing is held that must be given back."""

    def _trainable(self) -> dict[str, Tensor]:
        """Trainable parameters by name, sharing their memory."""
        trainable = {}
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad:
                trainable[name] = parameter.data
        return trainable

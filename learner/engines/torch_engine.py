"""The training engine in plain torch: one process, float32. Tests measure the DeepSpeed engine against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from common.config import Learner as LearnerConfig
from common.errors import UserError
from common.protocols import Slot
from learner.engines.optimizer import ClippedAdamW, build_schedule
from learner.engines.slots import shapes_of, whole_slots


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

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """It steps the parameters themselves."""
        return self._optimizer

    @property
    def schedule(self) -> LambdaLR:
        """Counts applied updates."""
        return self._schedule

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all trained parameters by name."""
        return shapes_of(self._module)

    def slots(self) -> list[Slot]:
        """Whole parameters."""
        return whole_slots(self._module)

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """The masters are the module's own weights."""
        yield

    def close(self) -> None:
        """Nothing is held that must be given back."""

"""Owns module and optimizer: DeepSpeed or plain torch, in learner/engines/."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """Where a rank keeps the master weights and Adam's moments of a stretch of one parameter's elements.

    Attributes:
        name, shape: of the whole parameter.
        start, numel: the stretch of the flattened parameter.
        tensor: what the optimizer steps, and keys its state by; other parameters may lie in it, too.
        offset: where the stretch begins in the flattened tensor.
        replicated: all ranks keep the same.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int
    tensor: torch.Tensor
    offset: int
    replicated: bool = False


class TrainEngine(Protocol):
    """Owns a module, its optimizer and schedule, on one of `world_size` ranks. The learner only computes losses."""

    rank: int
    world_size: int

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Steps the tensors of the slots."""
        ...

    @property
    def schedule(self) -> torch.optim.lr_scheduler.LambdaLR:
        """Counts applied updates."""
        ...

    @property
    def module(self) -> torch.nn.Module: ...

    def backward(self, loss: torch.Tensor) -> None: ...

    def step(self) -> Mapping[str, float]:
        """Clip, update, schedule, zero the gradients. Returns `grad_norm` and `lr`."""
        ...

    def gather_weights(
        self,
        wanted: Callable[[str], bool] = lambda name: True,
    ) -> Mapping[str, torch.Tensor] | None:
        """Whole parameters by module name, those whose name is wanted: on rank 0, None elsewhere. All ranks call it."""
        ...

    def place_frozen(self, module: torch.nn.Module) -> torch.nn.Module:
        """Bring a module that is never trained to the policy's device. The returned module is called in its place."""
        ...

    def gathered(
        self,
        module: torch.nn.Module,
        wanted: Callable[[str], bool] = lambda name: True,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Wanted parameters of the policy, or of a module from `place_frozen`, by name. All ranks call it.

        Only one parameter is whole at a time: it is cut up again when the next one is asked for.
        """
        ...

    def whole(
        self, parameters: Sequence[torch.nn.Parameter]
    ) -> AbstractContextManager[None]:
        """All of these are whole on all ranks as long as this lasts. All ranks call it, with the same ones."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of all trained parameters by name, whoever keeps their state."""
        ...

    def slots(self) -> Sequence[Slot]:
        """What this rank keeps of the optimizer's state, in the order of the parameters."""
        ...

    def restoring(self) -> AbstractContextManager[None]:
        """While it lasts the slots are filled; afterwards the module has the weights of the masters. Collective."""
        ...

    def close(self) -> None: ...

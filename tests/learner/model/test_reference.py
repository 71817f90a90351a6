"""When the reference of full tuning is there: always, or only while somebody asks it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common.config import RunConfig
from learner.forward.logps import CompletionLogps
from learner.model.reference import IDLE_STEPS, Reference, is_needed_at_times


class Engine:
    """Places a model where it is."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank

    def place_frozen(self, module: Any) -> Any:
        return module

    def gathered(self, module: Any) -> Any:
        return iter(module.named_parameters())


class Model(torch.nn.Linear):
    """Answers any batch with nothing."""

    @property
    def net(self) -> torch.nn.Module:
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return CompletionLogps(*[torch.zeros(0)] * 2)


class Disk:
    """Counts how often the start policy is read."""

    num_reads = 0

    def read(self) -> Any:
        self.num_reads += 1
        return Model(1, 1, bias=False)


def reference(disk: Disk, at_times: bool, rank: int = 0) -> Reference:
    engine: Any = Engine(rank)
    device = torch.device("cpu")
    return Reference(engine, device, torch.float32, read=disk.read, at_times=at_times)


BATCH: Any = SimpleNamespace()


def test_a_reference_that_every_step_needs_is_read_at_once() -> None:
    disk = Disk()
    always = reference(disk, at_times=False)
    for _ in range(3 * IDLE_STEPS):
        always.end_step()
    always.forward(BATCH)
    list(always.weights())
    assert disk.num_reads == 1
    assert always.copy is not None


def test_one_that_is_needed_at_times_is_read_when_asked_and_given_up_again() -> None:
    disk = Disk()
    at_times = reference(disk, at_times=True)
    assert disk.num_reads == 0
    for _ in range(2):
        at_times.forward(BATCH)
    assert disk.num_reads == 1
    for _ in range(IDLE_STEPS):
        at_times.end_step()
        assert at_times.copy is not None
    at_times.end_step()
    assert at_times.copy is None
    at_times.forward(BATCH)
    assert disk.num_reads == 2


@pytest.mark.parametrize(("rank", "num_weights"), [(0, 1), (1, 0)])
def test_start_weights_are_read_for_rank_0_alone(rank: int, num_weights: int) -> None:
    disk = Disk()
    at_times = reference(disk, at_times=True, rank=rank)
    assert len(list(at_times.weights())) == num_weights
    assert disk.num_reads == num_weights
    assert at_times.copy is None


def test_a_push_that_fails_leaves_no_second_model_behind() -> None:
    at_times = reference(Disk(), at_times=True)
    with pytest.raises(RuntimeError, match="no memory"), at_times.parameters():
        assert at_times.copy is not None
        raise RuntimeError("no memory")
    assert at_times.copy is None


@pytest.mark.parametrize(
    ("online_fraction", "zero_stage", "kind", "is_cached", "expected"),
    [
        (0.0, 2, "full", True, True),
        # Sampled pairs are new in every step.
        (0.5, 2, "full", True, False),
        (0.0, 2, "full", False, False),
        (0.0, 3, "full", True, False),
        (0.0, 2, "lora", True, False),
    ],
)
def test_when_steps_can_do_without(
    online_fraction: float,
    zero_stage: int,
    kind: str,
    is_cached: bool,
    expected: bool,
) -> None:
    config = RunConfig.model_validate(
        {
            "data": {"offline": {"path": "pairs"}},
            "mixture": {"online_fraction": online_fraction},
            "model": {"tuning": {"kind": kind}},
            "learner": {"zero_stage": zero_stage},
        }
    )
    assert is_needed_at_times(config, is_cached) is expected

"""The budget of restarts, on a clock of the test's."""

from __future__ import annotations

import pytest

from cluster.supervision.restarts import HOUR_S, Restarts
from common.errors import RunFailed


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_pauses_double_for_one_worker_and_not_for_the_others() -> None:
    restarts = Restarts(20, Clock())
    pauses = [restarts.grant("rollout/0", "rollout/0: it died") for _ in range(9)]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert restarts.grant("rollout/1", "rollout/1: it died") == 0.5


def test_the_budget_is_of_all_workers_and_comes_back_after_an_hour() -> None:
    clock = Clock()
    restarts = Restarts(2, clock)
    restarts.grant("rollout/0", "rollout/0: it died")
    clock.now += 10
    restarts.grant("reward/0", "reward/0: it died")
    with pytest.raises(RunFailed) as error:
        restarts.grant("learner/0", "learner/0: its process ended")
    assert str(error.value) == (
        "learner/0: its process ended; expected at most 2 restarts an hour (cluster.max_restarts_per_hour), got one "
        "more, after those of reward/0, rollout/0"
    )
    clock.now += HOUR_S - 10
    # The first is an hour old, the second is not.
    assert restarts.grant("rollout/0", "rollout/0: it died") == 0.5
    with pytest.raises(RunFailed):
        restarts.grant("rollout/0", "rollout/0: it died")


def test_no_budget_names_the_cause_alone() -> None:
    with pytest.raises(RunFailed, match=r"^rollout/0: it died$"):
        Restarts(0).grant("rollout/0", "rollout/0: it died")

"""Actors that share GPUs: which they are, and how a run waits for the one that knows."""

from __future__ import annotations

import asyncio
import time

import pytest

from cluster.placement import shared_gpus
from cluster.placement.bundles import Bundle
from cluster.placement.shared_gpus import SharedGpus

BUNDLES = [
    Bundle("rollout/0", 1, 4, ""),
    Bundle("learner/0", 1, 2, "", beside="rollout/0"),
    Bundle("learner/1", 1, 2, "", beside="rollout/0", turn=1),
    Bundle("reward/0", 1, 0, "", beside="rollout/0"),
]


def test_every_actor_has_its_part() -> None:
    shared = SharedGpus(BUNDLES, lambda name: "0,1,5,7", 1.0)
    assert shared.of("learner/0") == "0,1"
    assert shared.of("learner/1") == "5,7"
    assert [shared.of(name) for name in ("rollout/0", "reward/0", "x")] == [None] * 3


def test_the_run_goes_on_while_the_owner_is_waited_for() -> None:
    """Asked before an actor is started, so that its start need not ask."""
    looks: list[str] = []

    def look(name: str) -> str:
        time.sleep(0.2)
        looks.append(name)
        return "2,3,4,5"

    async def scenario() -> None:
        shared = SharedGpus(BUNDLES, look, 1.0)
        waiting = asyncio.create_task(shared.wait_for("learner/1"))
        num_turns = 0
        while not waiting.done():
            await asyncio.sleep(0.01)
            num_turns += 1
        assert num_turns > 3
        assert shared.of("learner/1") == "4,5"
        assert looks == ["rollout/0"]
        # The owner may have other ones by the next start.
        assert shared.of("learner/1") == "4,5"
        assert len(looks) == 2

    asyncio.run(scenario())


def test_an_owner_that_is_lost_as_well_may_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_gpus, "RETRY_S", 0.01)
    answers = iter([RuntimeError("dead"), RuntimeError("dead"), "0,1,2,3"])

    def look(name: str) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    shared = SharedGpus(BUNDLES, look, 5.0)
    asyncio.run(shared.wait_for("learner/0"))
    assert shared.of("learner/0") == "0,1"


def test_an_owner_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_gpus, "RETRY_S", 0.01)

    def look(name: str) -> str:
        raise RuntimeError("dead")

    shared = SharedGpus(BUNDLES, look, 0.05)
    with pytest.raises(RuntimeError, match="dead"):
        asyncio.run(shared.wait_for("learner/0"))

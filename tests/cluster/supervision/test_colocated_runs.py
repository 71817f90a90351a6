"""Workers that share GPUs are lost: engines and learner are never awake together."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.runs import events
from tests.cluster.supervision.chaos_runs import (
    LIMIT_S,
    Chaos,
    Rollout,
    check,
    config_of,
    run,
)
from tests.fakes.runtime import LocalHandle

pytestmark = pytest.mark.usefixtures("short_pauses")


class SharedGpus(Chaos):
    """Says how many engines are awake when the learner has them: as its ranks start, and in every step."""

    def __init__(self, *plan: tuple[str, int, str]) -> None:
        super().__init__(*plan)
        self.num_awake: list[int] = []

    async def strike(self, method: str, handle: LocalHandle) -> None:
        if method == "learn":
            # Time enough for an engine to come back beside it.
            await asyncio.sleep(LIMIT_S)
        if method in ("learn", "step"):
            awake = 0
            for name, other in self.handles.items():
                if name.startswith("rollout/") and not other.is_dead:
                    awake += other.worker.is_awake
            self.num_awake.append(awake)
        await super().strike(method, handle)


class Awake(Rollout):
    """Knows whether it holds its GPU."""

    is_awake = False

    async def start(self) -> dict[str, Any]:
        self.is_awake = True
        await self.strike("begin")
        # It still starts when the others have heard of what was struck.
        await asyncio.sleep(LIMIT_S / 2)
        return await super().start()

    async def sleep(self, level: int) -> None:
        await super().sleep(level)
        self.is_awake = False

    async def wake(self) -> None:
        self.is_awake = True
        await super().wake()


@pytest.mark.parametrize(
    "plan",
    [
        [("step", 5, "kill")],
        [("load", 5, "kill")],
        [("generate", 6, "kill"), ("step", 5, "kill")],
        [("generate", 6, "hang"), ("step", 7, "kill"), ("load", 4, "kill")],
        # The ranks are lost again while they start.
        [("step", 5, "kill"), ("learn", 2, "kill")],
    ],
)
def test_engines_that_share_gpus_sleep_while_a_learner_starts_or_steps(
    tmp_path: Path, plan: list[tuple[str, int, str]]
) -> None:
    config = config_of(tmp_path, cluster__placement="colocated")
    chaos = SharedGpus(*plan)
    run_dir = run(config, chaos, Awake)
    assert chaos.plan == []
    check(run_dir)
    assert set(chaos.num_awake) == {0}


class BothAtOnce(SharedGpus):
    """Kills the learner when an engine begins to start in the place of another one."""

    async def strike(self, method: str, handle: LocalHandle) -> None:
        await super().strike(method, handle)
        if (method, self.counts[method]) == ("begin", 2):
            self.handles["learner/0"].kill()


def test_an_engine_that_starts_as_the_learner_is_lost_sleeps_for_the_next_one(
    tmp_path: Path,
) -> None:
    config = config_of(tmp_path, cluster__placement="colocated")
    chaos = BothAtOnce(("generate", 6, "kill"))
    run_dir = run(config, chaos, Awake)
    assert chaos.plan == []
    check(run_dir)
    assert set(chaos.num_awake) == {0}
    names = sorted(event["name"] for event in events(run_dir, "restart"))
    assert names == ["learner/0", "rollout/0"]

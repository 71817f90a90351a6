"""An engine of the judge is lost: the others judge, and the reward workers get another one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.judged_runs import JudgingWorker, vlm
from tests.cluster.runs import events
from tests.cluster.supervision.chaos_runs import LIMIT_S, Chaos, Rollout, check, run
from tests.fakes.runtime import LocalHandle

JUDGES = ("judge/0", "judge/1")

pytestmark = pytest.mark.usefixtures("short_pauses")


class JudgingRollout(JudgingWorker, Rollout):
    """An engine of the policy or of the judge; only the judge's is asked for scores while pairs are judged."""

    async def encode(self, answers: Any) -> Any:
        await self.strike("encode")
        return await super().encode(answers)


def test_the_reward_workers_get_another_engine_of_the_judge(tmp_path: Path) -> None:
    """Of the only one nobody judges until another one is there."""
    config = vlm(tmp_path, 1, reward__num_workers=2, cluster__heartbeat_limit_s=LIMIT_S)
    chaos = Chaos(("encode", 2, "kill"))
    run_dir = run(config, chaos, JudgingRollout)
    check(run_dir)
    (restart,) = events(run_dir, "restart")
    assert restart["name"].startswith("judge/")
    assert restart["cause"] == "the fake has died"


class ReturnsLate(Chaos):
    """Kills an engine of the judge, whose successor starts when the learner has done three steps more.

    Then the learner waits until both reward workers have been renewed.
    """

    MORE_STEPS = 3
    STARTS = 2 * 2

    def __init__(self) -> None:
        super().__init__(("encode", 2, "kill"))
        self.steps_meanwhile = 0

    async def strike(self, method: str, handle: LocalHandle) -> None:
        judges = [self.handles.get(name) for name in JUDGES]
        if method == "wake" and handle in judges and not self.plan:
            begun = self.counts.get("step", 0)
            await until(lambda: self.counts.get("step", 0) >= begun + self.MORE_STEPS)
            self.steps_meanwhile = self.counts["step"] - begun
        if method == "step" and not self.plan:
            # Its loss is noticed.
            await until(lambda: not any(map(self.is_dead, JUDGES)))
        if method == "step" and self.steps_meanwhile:
            await until(lambda: self.counts["start"] >= self.STARTS)
        await super().strike(method, handle)

    def is_dead(self, name: str) -> bool:
        return self.handles[name].is_dead


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0.005)


class WakingRollout(JudgingRollout):
    async def start(self) -> Any:
        await self.strike("wake")
        return await super().start()


def test_the_other_engines_of_the_judge_go_on(tmp_path: Path) -> None:
    config = vlm(tmp_path, reward__num_workers=2, cluster__heartbeat_limit_s=LIMIT_S)
    chaos = ReturnsLate()
    run_dir = run(config, chaos, WakingRollout)
    check(run_dir)
    assert chaos.steps_meanwhile >= ReturnsLate.MORE_STEPS
    (restart,) = events(run_dir, "restart")
    assert restart["name"].startswith("judge/")
    # Both reward workers know the new engine.
    roster = json.loads((run_dir / "workers.json").read_text())
    numbers = [roster["workers"][f"reward/{index}"]["number"] for index in (0, 1)]
    assert numbers == [1, 1]


class AgainInRenewal(Chaos):
    """Kills the first engine of the judge twice: the second time while the reward worker is renewed for it."""

    async def strike(self, method: str, handle: LocalHandle) -> None:
        await super().strike(method, handle)
        if (method, self.counts[method]) in (("encode", 2), ("start", 2)):
            self.handles["judge/0"].kill()
            # Its loss is noticed before the renewal is done.
            await asyncio.sleep(LIMIT_S)


def test_an_engine_of_the_judge_may_die_while_the_reward_worker_is_renewed(
    tmp_path: Path,
) -> None:
    config = vlm(tmp_path, 1, cluster__heartbeat_limit_s=LIMIT_S)
    run_dir = run(config, AgainInRenewal(), JudgingRollout)
    check(run_dir)
    names = [event["name"] for event in events(run_dir, "restart")]
    assert names == ["judge/0"]
    # Once in the middle, and once when the engine was there for good.
    roster = json.loads((run_dir / "workers.json").read_text())
    assert roster["workers"]["reward/0"]["number"] == 2

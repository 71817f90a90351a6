"""An engine of the judge is lost: reward workers get another one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.judged_runs import JudgingWorker, vlm
from tests.cluster.runs import events
from tests.cluster.supervision.chaos_runs import LIMIT_S, Chaos, Rollout, check, run
from tests.fakes.runtime import LocalHandle

pytestmark = pytest.mark.usefixtures("short_pauses")


class JudgingRollout(JudgingWorker, Rollout):
    """An engine of the policy or of the judge; only the judge's is asked for scores while pairs are judged."""

    async def encode(self, answers: Any) -> Any:
        await self.strike("encode")
        return await super().encode(answers)


def test_the_reward_workers_get_another_engine_of_the_judge(tmp_path: Path) -> None:
    config = vlm(tmp_path, reward__num_workers=2, cluster__heartbeat_limit_s=LIMIT_S)
    chaos = Chaos(("encode", 2, "kill"))
    run_dir = run(config, chaos, JudgingRollout)
    check(run_dir)
    (restart,) = events(run_dir, "restart")
    assert restart["name"].startswith("judge/")
    assert restart["cause"] == "the fake has died"


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
    config = vlm(tmp_path, cluster__heartbeat_limit_s=LIMIT_S)
    run_dir = run(config, AgainInRenewal(), JudgingRollout)
    check(run_dir)
    names = [event["name"] for event in events(run_dir, "restart")]
    assert names == ["judge/0"]
    # Once in the middle, and once when the engine was there for good.
    roster = json.loads((run_dir / "workers.json").read_text())
    assert roster["workers"]["reward/0"]["number"] == 2

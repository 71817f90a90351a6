"""What a user's judge makes of a group, alone and in the reward worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from common.config import PythonJudge, RunConfig
from common.records import Dropped, RolloutGroup
from reward.judges.factory import make_judge
from reward.worker import RewardWorker
from tests.reward.builders import group, prompt
from tests.reward.judging import scores_of

GROUP = group(replace(prompt({"label": "cat"}, id="p17"), reference="A cat."), "a", "b")

Write = Callable[..., PythonJudge]


def scores(settings: PythonJudge, rolled: RolloutGroup = GROUP) -> tuple[float, ...]:
    return scores_of(make_judge(settings), rolled)


def dropped(
    settings: PythonJudge, rolled: RolloutGroup = GROUP, max_retries: int = 0
) -> Dropped:
    """What the reward worker makes of a group that has no verdict."""
    config = RunConfig(
        mixture={"online_fraction": 1},  # type: ignore[arg-type]
        reward={"max_retries": max_retries},  # type: ignore[arg-type]
    )
    worker = RewardWorker(config, make_judge(settings), backoff_s=0.0)
    (result,) = asyncio.run(worker.judge([rolled]))
    assert isinstance(result, Dropped), result
    assert "\n" not in result.detail
    return result

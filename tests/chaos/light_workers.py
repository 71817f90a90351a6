"""The workers of a light run. They start within a second: nothing here imports torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from common.config import RunConfig
from common.records import Judged, RolloutGroup
from reward.eyes.factory import EyeTools
from reward.worker import RewardWorker
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker

SLOW = "slow_judge"
"""While a file of this name lies beside the run directory, judges are slow."""
SLOW_S = 1.0


class LightEngine(FakeRolloutWorker):
    """Answers after a while."""

    delay_s = 0.05


class LightLearner(FakeLearner):
    """Needs a while for a step. Rank 0 writes: two processes that write the same file spoil it."""

    step_s = 0.1

    def __init__(self, config: RunConfig, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(config, rank, world_size)
        self._writes = rank == 0

    def save(self, directory: str) -> None:
        """The weight, which all ranks hold."""
        if self._writes:
            super().save(directory)

    def export(self, directory: str) -> None:
        """The weight as a policy."""
        if self._writes:
            super().export(directory)


class LightJudge(RewardWorker):
    """The real one, with the rules of the shapes world, which may be slowed down."""

    def __init__(
        self, config: RunConfig, judge: None = None, tools: EyeTools | None = None
    ) -> None:
        super().__init__(config, judge, tools)
        self._slow = Path(config.run.dir).parent / SLOW

    async def rank(self, groups: Sequence[RolloutGroup]) -> list[Judged]:
        """As ever, some time later."""
        begin = time.monotonic()
        while self._slow.exists() and time.monotonic() - begin < SLOW_S:
            await asyncio.sleep(0.05)
        return await super().rank(groups)

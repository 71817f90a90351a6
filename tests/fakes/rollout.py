"""A rollout worker around a fake engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.bdhs.online import OnlineBdhsSampler
from common.config import RunConfig
from common.protocols import GenerationRequest, Tensors
from common.push.meeting import EngineSeat, Meeting
from common.push.plan import PushPlan
from common.records import (
    Dropped,
    LoadReport,
    LogprobProbe,
    PreferencePair,
    ProbeReading,
    Prompt,
    RolloutGroup,
    WeightManifest,
)
from tests.fakes.engine import FakeEngine
from tests.fakes.policy import EOS, text_ids
from tests.fakes.push import MEETINGS, PLAN


class FakeRolloutWorker:
    """RolloutWorker over a FakeEngine. `phrases` may be set on the class by a test."""

    phrases: Sequence[str] = (
        "There is a red circle at the top.",
        "There is a blue star at the bottom.",
    )
    delay_s = 0.0

    def __init__(
        self, config: RunConfig, index: int, model_path: str | None = None
    ) -> None:
        self.engine = FakeEngine(self.phrases, self.delay_s)
        self.sleeps: list[int] = []
        self._bdhs = OnlineBdhsSampler(config, lambda prompt: 4)

    async def start(self) -> dict[str, Any]:
        return {"engine": "fake", "weight_version": self.engine.weight_version}

    async def generate(
        self, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        return await self.engine.generate(requests)

    async def sleep(self, level: int) -> None:
        self.sleeps.append(level)
        await self.engine.sleep(level)

    async def wake(self) -> None:
        await self.engine.wake()

    async def bdhs_pairs(
        self, groups: list[tuple[str, Prompt]]
    ) -> list[PreferencePair | Dropped]:
        return await self._bdhs.pairs(groups, self.engine.generate)

    async def score(
        self, answers: list[tuple[Prompt, str]]
    ) -> list[tuple[float, ...] | Dropped]:
        return await self.engine.score(answers)

    async def encode(self, answers: list[str]) -> list[tuple[int, ...]]:
        return [(*text_ids(answer), EOS) for answer in answers]

    async def calibrate(
        self, probe: LogprobProbe, proven: ProbeReading | None = None
    ) -> ProbeReading:
        return await self.engine.calibrate(probe, proven)

    async def load(self, manifest: WeightManifest, tensors: Tensors) -> LoadReport:
        return await self.engine.load_weights(manifest, tensors)

    async def check_push(self, version: int, plan: PushPlan) -> EngineSeat:
        assert plan == PLAN
        return EngineSeat("here", "cpu", 1, "here")

    async def receive(
        self, version: int, plan: PushPlan, meeting: Meeting, first_rank: int
    ) -> LoadReport:
        tensors = await MEETINGS.receive(meeting)
        self.engine.take(version, tensors)
        return LoadReport(version, None, 0.0)

    async def break_push(self, meeting: Meeting, reason: str) -> None:
        MEETINGS.break_off(meeting, reason)

    async def prove(self, manifest: WeightManifest, received: LoadReport) -> LoadReport:
        return await self.engine.prove(manifest)

    async def close(self) -> None:
        await self.engine.close()

"""A learner that trains nothing and publishes the fake policy."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.config import RunConfig
from common.data.records_on_disk import id_key
from common.push.meeting import Meeting, Place
from common.push.plan import PushPlan
from common.records import (
    AnswerLogprobs,
    Dropped,
    LogprobProbe,
    PreferencePair,
    ProbeAnswer,
    StepResult,
    WeightManifest,
    WriteReport,
)
from tests.fakes.policy import fake_checksum, fake_logprobs
from tests.fakes.push import MEETINGS, PLAN
from tests.probes import of_tokens


class FakeLearner:
    """Counts what it is given; its one weight is the number of pairs it ever trained on."""

    step_s = 0.0

    def __init__(self, config: RunConfig, rank: int = 0, world_size: int = 1) -> None:
        self.weight = 0
        self._rank = rank
        self._is_writing = False

    def rendezvous(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    def start(self, master_address: str, master_port: int) -> dict[str, Any]:
        return {"device": "fake", "fallbacks": {"share_prompt": "a fake has no prompt"}}

    def set_probe(self, answers: Sequence[ProbeAnswer]) -> LogprobProbe:
        self._probe = tuple(answers)
        return LogprobProbe(self._probe, self._probe_logprobs())

    def _probe_logprobs(self) -> tuple[AnswerLogprobs, ...]:
        logprobs = []
        for answer in self._probe:
            values = fake_logprobs(answer.prompt, answer.token_ids, self.weight)
            logprobs.append(of_tokens(answer.token_ids, values))
        return tuple(logprobs)

    def prepare(self, step: int, rows: Mapping[int, PreferencePair]) -> None:
        return None

    async def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        await asyncio.sleep(self.step_s)
        self.weight += len(pairs)
        ids = tuple(pair.id for pair in pairs)
        metrics = {"loss": 1.0 / step, "rewards/margins": float(step)}
        margins = {name: self._margin(name) for name in ids}
        return StepResult(step, metrics, ids, margins), []

    def _margin(self, name: str) -> float:
        """Grows with the weight, for each pair at another rate."""
        return (id_key(name) % 7 - 3) * self.weight / 10

    def rest(self) -> None:
        return None

    def plan_push(self) -> PushPlan:
        return PLAN

    def meeting_place(self, networks: list[str]) -> Place:
        return Place("127.0.0.1", 1, "cpu", "here")

    async def push(
        self, version: int, meeting: Meeting
    ) -> tuple[WeightManifest | None, str]:
        manifest, tensors = self.publish(version)
        if manifest is None:
            return None, ""
        broken = await MEETINGS.send(meeting, tensors)
        return (None if broken else manifest), broken

    def publish(self, version: int) -> tuple[WeightManifest | None, Mapping[str, Any]]:
        if self._rank:
            return None, {}
        tensors = {"bias": np.array([float(self.weight)], dtype=np.float32)}
        manifest = WeightManifest(
            version,
            fake_checksum(tensors),
            num_tensors=1,
            num_bytes=4,
            change_norm=float(self.weight),
            probe=LogprobProbe(self._probe, self._probe_logprobs()),
        )
        return manifest, tensors

    def checkpoint_bytes(self, with_policy: bool) -> int:
        return 1

    def save(self, directory: str) -> None:
        self._write(directory, "weight.json", self.weight)

    def written(self) -> WriteReport | None:
        if self._is_writing:
            # Not yet: who asks once only does not wait.
            self._is_writing = False
            return None
        return WriteReport()

    def load(self, directory: str) -> list[str]:
        self.weight = json.loads((Path(directory) / "weight.json").read_text())
        return []

    def export(self, directory: str) -> None:
        # The time makes every export a different file, as another policy would be.
        content = {"weight": self.weight, "time": time.time()}
        self._write(directory, "config.json", content)

    def _write(self, directory: str, name: str, content: object) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / name).write_text(json.dumps(content))
        self._is_writing = True

"""An engine waits for a push as long as the learner may take for it, and no longer than there is one to wait for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import actors.rollout
from actors.rollout import RolloutWorker
from actors.weights.streamed_push import KeptTensors, StreamedPush
from common.config import RunConfig
from common.machine.address import LOOPBACK
from common.push.meeting import READY, Meeting, MeetingPlace, PushBroken, tell_broken
from common.push.plan import PushPlan
from common.records import LoadReport
from common.weights import from_arrays


class Learner:
    """The store of one, and the push that an engine waits for. Buckets may take it a tenth of a second."""

    def __init__(self) -> None:
        self._place = MeetingPlace(LOOPBACK)
        meeting = Meeting(LOOPBACK, self._place.port, "push", "gloo", 2, 0.1)
        self.store = self._place.store(meeting)
        self.push = StreamedPush(5, PushPlan((), 1, "model"), meeting, 1)


async def waited(waiting: Awaitable[None]) -> float:
    """Seconds that it took."""
    begun = time.monotonic()
    await waiting
    return time.monotonic() - begun


def test_what_comes_before_the_first_bucket_may_take_longer_than_a_bucket() -> None:
    """The learner runs the probe and gathers its first layers."""
    learner = Learner()

    async def scenario() -> float:
        waiting = asyncio.create_task(waited(learner.push.wait_until_ready(20)))
        await asyncio.sleep(0.5)
        learner.store.set(READY, "")
        return await waiting

    assert 0.4 < asyncio.run(scenario()) < 5


def test_a_learner_that_fails_before_is_heard_at_once() -> None:
    learner = Learner()
    tell_broken(learner.store, "the learner failed: no memory")
    message = (
        r"weights 5: expected the learner at .* to send, got: the learner failed: no memory; see its "
        r"log, or raise loop\.call_timeout_s"
    )
    with pytest.raises(PushBroken, match=message):
        asyncio.run(learner.push.wait_until_ready(20))


def test_a_learner_that_says_nothing_is_waited_for_to_a_limit() -> None:
    learner = Learner()
    with pytest.raises(PushBroken, match=r"to send, got: nothing within 0\.3 s"):
        asyncio.run(learner.push.wait_until_ready(0.3))


def test_what_a_worker_leaves_is_taken_once_and_lies_in_no_folder() -> None:
    kept = KeptTensors()
    weights = {"projector": torch.randn(3, 4), "half": torch.randn(5).bfloat16()}
    for scale in (1, 2):
        # As a process of the engine does it.
        scaled = {name: scale * tensor for name, tensor in weights.items()}
        with ProcessPoolExecutor(1, get_context("spawn")) as worker:
            worker.submit(Path(kept.path).write_bytes, save(scaled)).result()
        with kept.taken() as tensors:
            arrived = from_arrays(tensors)
            assert set(arrived) == set(weights)
            assert all(torch.equal(arrived[name], scaled[name]) for name in weights)
        with kept.taken() as tensors:
            assert tensors == {}


class Receiver:
    """An engine that takes any push."""

    async def receive_weights(self, push: StreamedPush) -> LoadReport:
        return LoadReport(push.version, None, 0.0)


class Worker(RolloutWorker):
    """With that engine."""

    @property
    def _running(self) -> Any:
        return Receiver()


def test_lines_of_the_log_carry_the_version_that_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted: list[int] = []
    monkeypatch.setattr(actors.rollout, "note_version", noted.append)
    push = Learner().push
    config = RunConfig.model_validate({"mixture": {"online_fraction": 1.0}})
    worker = Worker(config, 0)
    asyncio.run(worker.receive(5, push.plan, push.meeting, 1))
    assert noted == [5]

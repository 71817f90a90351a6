"""Which ranks send a push to whom, and what ends it; over twins of GPUs, and over nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import common.push.gpu_memory
from common.machine.address import LOOPBACK
from common.push.meeting import Meeting, join, network_id
from common.push.plan import TensorSpec
from common.push.waiting import told
from common.push.wire import receive
from common.records import WeightManifest
from learner.push.sending import PushSender
from tests.common.push.members import CPU, named, plan_of, received, taken
from tests.common.push.twin_gpu import of_this_thread

WEIGHTS = {f"w{number}": torch.randn(20, 25) for number in range(9)}
PLAN = plan_of(WEIGHTS, bucket_bytes=4000)


class Source:
    """A `WeightSource` of ready tensors."""

    change_norm = 1.0
    merged_survives = None
    num_gathered = 0

    def tensors(
        self, start: Mapping[str, nn.Parameter]
    ) -> Iterator[tuple[TensorSpec, Tensor]]:
        for item in named(PLAN, WEIGHTS):
            self.num_gathered += 1
            yield item

    def gather(self, start: Mapping[str, nn.Parameter]) -> None:
        self.num_gathered = len(WEIGHTS)


class Ranks:
    """Two ranks, each a thread on a GPU of its own: `a` and `b`."""

    def __init__(self, num_workers: int, backend: str = "ipc") -> None:
        self.sources = [Source(), Source()]
        self.senders: list[Any] = []
        for rank, source in enumerate(self.sources):
            stand_in: Any = source
            self.senders.append(PushSender(stand_in, PLAN, rank, CPU))
        place = self.senders[0].meeting_place([network_id()])
        self.meeting = Meeting(
            LOOPBACK, place.port, "push", backend, 1 + num_workers, 20.0
        )
        self._on = {gpu: ThreadPoolExecutor(4, gpu) for gpu in ("a", "b")}

    def pushing(self) -> list[Future[tuple[WeightManifest | None, str]]]:
        calls = []
        for gpu, sender in zip(("a", "b"), self.senders, strict=True):
            push = sender.push
            calls.append(self._on[gpu].submit(push, 3, self.meeting, {}, None))
        return calls

    def receiving(self, gpu: str, how: Any = received) -> Future[Any]:
        """A worker of an engine."""

        def run() -> Any:
            group = join(self.meeting, 1, self.meeting.store(), CPU)
            return taken(PLAN, group, how)

        return self._on[gpu].submit(run)


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.push.gpu_memory, "GpuMemory", of_this_thread)


@pytest.mark.parametrize("gpus_of_workers", [("a", "b"), ("a",), ("b",), ()])
def test_any_engines_get_the_weights_and_rank_0_tells_of_them(
    gpus_of_workers: tuple[str, ...],
) -> None:
    """Of two engines that each share a GPU with a rank, one may be dead, and one may come back alone."""
    ranks = Ranks(len(gpus_of_workers))
    calls = ranks.pushing()
    for worker in [ranks.receiving(gpu) for gpu in gpus_of_workers]:
        arrived = worker.result()
        assert all(torch.equal(arrived[name], WEIGHTS[name]) for name in WEIGHTS)
    (manifest, broken), of_rank_1 = (call.result() for call in calls)
    assert manifest is not None
    assert (manifest.version, manifest.num_tensors) == (3, len(WEIGHTS))
    assert broken == ""
    assert of_rank_1 == (None, "")


def test_an_engine_that_fails_beside_one_rank_breaks_the_push_of_all() -> None:
    """Rank 0 makes no manifest of a push that half of the engines have: they come together again."""
    ranks = Ranks(2)

    def failing(plan: Any, group: Any) -> Any:
        next(receive(plan, group))
        raise ValueError("no room")

    calls = ranks.pushing()
    ranks.receiving("a")
    ranks.receiving("b", failing)
    (manifest, broken), (_, of_rank_1) = (call.result() for call in calls)
    assert manifest is None
    assert "got: a receiver failed" in broken
    assert "got: a receiver failed" in of_rank_1
    # ZeRO-3 gathers on all ranks or hangs.
    assert [source.num_gathered for source in ranks.sources] == [len(WEIGHTS)] * 2


def test_over_a_network_rank_0_alone_sends() -> None:
    ranks = Ranks(1, "gloo")
    calls = ranks.pushing()
    arrived = ranks.receiving("b").result()
    assert all(torch.equal(arrived[name], WEIGHTS[name]) for name in WEIGHTS)
    (manifest, _), of_rank_1 = (call.result() for call in calls)
    assert manifest is not None
    assert of_rank_1 == (None, "")


def test_engines_hear_of_a_learner_that_fails_before_its_first_bucket() -> None:
    ranks = Ranks(1)
    sender = ranks.senders[0]
    with pytest.raises(ValueError, match="no memory"), sender.telling(ranks.meeting):
        raise ValueError("no memory")
    assert told(ranks.meeting.store()) == "the learner failed: no memory"

"""Buckets over twins of GPUs, between threads: any of a run's engines may take part, and none is waited for."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from common.machine.address import LOOPBACK
from common.push.fingerprint import fingerprint
from common.push.gpu_memory import shareable
from common.push.meeting import SENDER, Group, Meeting, MeetingPlace, PushBroken
from common.push.plan import PushPlan
from common.push.shared import SharedBuckets
from common.push.wire import Fingerprints, receive, send
from tests.common.push.members import CPU, named, plan_of, received, taken
from tests.common.push.twin_gpu import TwinMemory

WEIGHTS = {f"w{number}": torch.randn(40, 25) for number in range(12)}
PLAN = plan_of(WEIGHTS, bucket_bytes=6000)


class Ranks:
    """The learner's ranks, and workers of engines; all are threads, each on the twin of a GPU."""

    def __init__(self, num_readers: int, timeout_s: float = 20.0) -> None:
        self.place = MeetingPlace(LOOPBACK)
        self.meeting = Meeting(
            LOOPBACK, self.place.port, "push", "ipc", 1 + num_readers, timeout_s
        )
        self._threads = ThreadPoolExecutor(8)

    def group(self, gpu: str, rank: int) -> SharedBuckets:
        return SharedBuckets(self.meeting, rank, self.meeting.store(), TwinMemory(gpu))

    def sending(self, gpu: str, shift: float = 0.0) -> Future[Fingerprints]:
        """A rank on this GPU, begun, whose weights are higher by `shift`."""

        def run() -> Fingerprints:
            groups: list[Group] = []

            def connect() -> Group:
                groups.append(self.group(gpu, SENDER))
                return groups[0]

            weights = {name: tensor + shift for name, tensor in WEIGHTS.items()}
            broken = "a rank failed"
            try:
                fingerprints = send(PLAN, CPU, connect, named(PLAN, weights))
                broken = ""
                return fingerprints
            finally:
                for group in groups:
                    group.leave(broken)

        return self._threads.submit(run)

    def receiving(self, gpu: str, how: Any = received) -> Future[dict[str, Tensor]]:
        """A worker on this GPU, begun."""

        def run() -> Any:
            return taken(PLAN, self.group(gpu, 1), how)

        return self._threads.submit(run)


def check_arrived(arrived: dict[str, Tensor], shift: float = 0.0) -> None:
    assert list(arrived) == list(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert torch.equal(arrived[name], tensor + shift)


def test_a_worker_reads_from_the_rank_on_its_gpu() -> None:
    ranks = Ranks(3)
    senders = [ranks.sending("a"), ranks.sending("b", 1.0)]
    readers = [ranks.receiving(gpu) for gpu in ("a", "b", "b")]
    for sender in senders:
        assert len(sender.result()) == len(WEIGHTS)
    for reader, shift in zip(readers, (0.0, 1.0, 1.0), strict=True):
        check_arrived(reader.result(), shift)


def test_one_engine_alone_is_caught_up() -> None:
    """Nobody reads on rank 0's GPU, nor on the last: both go on, and rank 0 has the fingerprints."""
    ranks = Ranks(1)
    first, _, last = (ranks.sending(gpu) for gpu in ("a", "b", "c"))
    check_arrived(ranks.receiving("b").result())
    for sender in (first, last):
        for spec, digest in sender.result():
            assert digest == fingerprint(WEIGHTS[spec.name])


def test_without_engines_there_is_still_a_manifest_to_be_made() -> None:
    assert len(Ranks(0).sending("a").result()) == len(WEIGHTS)


def test_a_worker_that_fails_takes_nobody_s_time() -> None:
    ranks = Ranks(2, timeout_s=60)

    def failing(plan: PushPlan, group: Group) -> Any:
        next(receive(plan, group))
        raise ValueError("no room")

    begun = time.monotonic()
    senders = [ranks.sending("a"), ranks.sending("b")]
    other = ranks.receiving("a")
    failed = ranks.receiving("b", failing)
    with pytest.raises(ValueError, match="no room"):
        failed.result()
    for sender in senders:
        with pytest.raises(PushBroken, match="got: a receiver failed"):
            sender.result()
    # It may have had its last bucket already.
    assert isinstance(other.exception(), PushBroken | None)
    assert time.monotonic() - begun < 10


def test_who_never_comes_is_told_in_time() -> None:
    ranks = Ranks(2, timeout_s=0.5)
    sender = ranks.sending("a")
    reader = ranks.receiving("a")
    with pytest.raises(PushBroken, match=r"expected all engines to come within 0\.5 s"):
        sender.result()
    with pytest.raises(PushBroken, match="expected the learner to fill a bucket"):
        reader.result()


def test_the_store_does_not_grow_with_the_weights() -> None:
    """A run makes thousands of pushes of hundreds of buckets."""
    ranks = Ranks(1)
    sender = ranks.sending("a")
    ranks.receiving("a").result()
    sender.result()
    assert len(list(PLAN.buckets())) == 12
    store = ranks.place.store(ranks.meeting)
    # Who is here on which GPU, who is done, and what torch keeps for itself.
    assert store.num_keys() <= 5


class LostStore:
    """That of a learner which has just died."""

    def check(self, *args: Any) -> bool:
        raise RuntimeError("Connection reset by peer")

    add = get = set = check


@pytest.mark.parametrize("rank", [SENDER, 1])
def test_a_lost_learner_is_a_broken_push(rank: int) -> None:
    meeting = Meeting(LOOPBACK, 9, "push", "ipc", 2, 5.0)
    with pytest.raises(PushBroken, match="got: Connection reset by peer"):
        SharedBuckets(meeting, rank, LostStore(), TwinMemory("a"))


@pytest.mark.parametrize(
    ("settings", "meanwhile"),
    [
        ("", "expandable_segments:False"),
        (
            "max_split_size_mb:512,expandable_segments:True",
            "expandable_segments:False,max_split_size_mb:512",
        ),
    ],
)
def test_a_bucket_to_be_shared_lies_in_no_expandable_segment(
    settings: str, meanwhile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch._C._accelerator_getAllocatorSettings()
    seen: list[str] = []

    def empty(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(torch._C._accelerator_getAllocatorSettings())
        return torch.zeros(3, dtype=torch.uint8)

    torch._C._accelerator_setAllocatorSettings(settings)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(torch, "empty", empty)
            shareable(3, torch.uint8, CPU)
        after = torch._C._accelerator_getAllocatorSettings()
    finally:
        torch._C._accelerator_setAllocatorSettings(before)
    assert seen == [meanwhile]
    assert after == settings

"""Buckets between threads: what comes is what was sent, or everybody hears that it is not."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor

import common.push.collective
from common.machine.address import LOOPBACK
from common.push.fingerprint import fingerprint
from common.push.meeting import (
    SENDER,
    Group,
    Meeting,
    MeetingPlace,
    PushBroken,
    Unreachable,
    join,
)
from common.push.plan import PushPlan, TensorSpec
from common.push.waiting import NOTHING, wait_until
from common.push.wire import DamagedBucket, receive
from tests.common.push.members import CPU, Members, named, plan_of

BACKENDS = ["gloo", "shm"]
WEIGHTS = {
    "embedding": torch.randn(300, 40),
    "norm": torch.randn(7).bfloat16(),
    "scale": torch.tensor(3.5),
    "transposed": torch.randn(30, 20).T,
    "none": torch.empty(0, 4),
    "bits": torch.arange(13, dtype=torch.uint8),
    "last": torch.randn(64, 64).bfloat16(),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bucket_bytes", [1, 5000, 30_000, 1 << 20])
def test_all_receivers_get_every_bit(bucket_bytes: int, backend: str) -> None:
    plan = plan_of(WEIGHTS, bucket_bytes)
    members = Members(3, backend=backend)
    receivers = [members.receiving(rank, plan) for rank in (1, 2, 3)]
    fingerprints = members.send(plan, WEIGHTS)
    for receiver in receivers:
        arrived = receiver.result()
        assert list(arrived) == list(WEIGHTS)
        for name, tensor in WEIGHTS.items():
            assert arrived[name].dtype == tensor.dtype
            assert torch.equal(arrived[name], tensor)
    for spec, digest in fingerprints:
        assert digest == fingerprint(WEIGHTS[spec.name].contiguous())


def test_aliases_come_with_their_tensor_and_travel_once() -> None:
    head = TensorSpec("embedding", "float32", (300, 40), aliases=("lm_head",))
    plan = PushPlan((head,), 1 << 20, "model")
    members = Members(1)
    receiver = members.receiving(1, plan)
    members.send(plan, WEIGHTS)
    arrived = receiver.result()
    assert torch.equal(arrived["lm_head"], arrived["embedding"])
    assert plan.num_bytes == 300 * 40 * 4
    assert set(plan.shapes) == {"embedding", "lm_head"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_buckets_at_most_are_held_by_the_sender(backend: str) -> None:
    """It asks for the tensors of a third one only when the first has gone."""
    weights = {f"w{number}": torch.full((256,), float(number)) for number in range(12)}
    plan = plan_of(weights, bucket_bytes=1024)
    members = Members(1, backend=backend)
    taken: list[str] = []

    def slowly(plan: PushPlan, group: Group) -> Any:
        arrived = {}
        for name, tensor in receive(plan, group):
            # One bucket that is loaded, and one that travels, are here; two are with the sender.
            assert len(taken) <= int(name[1:]) + 4
            time.sleep(0.01)
            arrived[name] = tensor
        return arrived

    def tensors() -> Any:
        for spec, tensor in named(plan, weights):
            taken.append(spec.name)
            yield spec, tensor

    receiver = members.receiving(1, plan, slowly)
    members.send_from(plan, tensors())
    assert len(receiver.result()) == 12


@pytest.mark.parametrize(
    ("backend", "expected", "way"),
    [
        ("gloo", "a bucket", f"between the learner at {LOOPBACK}:"),
        ("shm", "an engine to read a bucket", "in shared memory"),
    ],
)
def test_a_receiver_that_leaves_takes_nobody_s_time(
    backend: str, expected: str, way: str
) -> None:
    """The others hear of it long before their limit."""
    weights = {f"w{number}": torch.zeros(1 << 18) for number in range(16)}
    plan = plan_of(weights)
    members = Members(3, timeout_s=60, backend=backend)

    def leaving(plan: PushPlan, group: Group) -> str:
        arriving = receive(plan, group)
        next(arriving)
        raise ValueError("no room")

    others = [members.receiving(rank, plan) for rank in (1, 3)]
    left = members.receiving(2, plan, leaving)
    begun = time.monotonic()
    message = f"expected {expected} within 60 s, got: a receiver failed"
    with pytest.raises(PushBroken, match=message):
        members.send(plan, weights)
    for other in others:
        with pytest.raises(PushBroken, match=f"weights {way}"):
            other.result()
    with pytest.raises(ValueError, match="no room"):
        left.result()
    assert time.monotonic() - begun < 10


def test_a_receiver_that_never_comes_is_told_in_time() -> None:
    plan = plan_of(WEIGHTS)
    members = Members(2, timeout_s=1.0)
    receiver = members.receiving(1, plan)
    message = (
        rf"{LOOPBACK}:\d+ and {LOOPBACK}: expected all 3 members to come within 1 s"
    )
    with pytest.raises(PushBroken, match=message):
        members.send(plan, WEIGHTS)
    with pytest.raises(PushBroken, match=message):
        receiver.result()


def test_nobody_at_the_address_names_both_ends() -> None:
    meeting = Meeting(LOOPBACK, 9, "key", "gloo", 2, 0.5)
    message = f"engine at {LOOPBACK}: expected to reach the learner at {LOOPBACK}:9 "
    with pytest.raises(Unreachable, match=message):
        join(meeting, 1, meeting.store(), CPU)


@pytest.mark.parametrize("damaged", [2, 13])
def test_a_flipped_bit_is_found(damaged: int) -> None:
    """Also one of the last bucket: the learner is not done before that has been checked."""
    plan = plan_of(WEIGHTS, bucket_bytes=5000)
    assert len(list(plan.buckets())) == 13
    members = Members(1)

    class Faulty:
        """A group of which one bucket arrives with a bit of another value."""

        device = CPU
        num_buckets = 0

        def __init__(self, group: Group) -> None:
            self.group = group

        def broadcast(self, buffer: Tensor) -> Any:
            self.num_buckets += 1
            work = self.group.broadcast(buffer)
            return _Flipped(work, buffer) if self.num_buckets == damaged else work

        def finish(self) -> None:
            self.group.finish()

        def leave(self, broken: str = "") -> None:
            self.group.leave(broken)

    class _Flipped:
        def __init__(self, work: Any, buffer: Tensor) -> None:
            self.work, self.buffer = work, buffer

        def wait(self) -> None:
            self.work.wait()
            self.buffer[3] ^= 4

    def faulty(plan: PushPlan, group: Group) -> Any:
        return dict(receive(plan, Faulty(group)))

    receiver = members.receiving(1, plan, faulty)
    with pytest.raises(PushBroken, match="a receiver failed"):
        members.send(plan, WEIGHTS)
    with pytest.raises(
        DamagedBucket, match=f"bucket {damaged} of 13: expected fingerprint"
    ):
        receiver.result()


@pytest.mark.parametrize(("broken", "ended"), [("", "shutdown"), ("lost", "abort")])
def test_nccl_is_shut_down_after_its_last_bucket_and_aborted_before(
    broken: str, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    class Nccl:
        def abort(self) -> None:
            calls.append("abort")

        def shutdown(self) -> None:
            calls.append("shutdown")

    monkeypatch.setattr(common.push.collective, "_nccl", lambda *args: Nccl())
    place = MeetingPlace(LOOPBACK)
    meeting = Meeting(LOOPBACK, place.port, "alone", "nccl", 1, 5.0)
    join(meeting, SENDER, place.store(meeting), CPU).leave(broken)
    assert calls == [ended]


def test_a_loss_without_a_word_is_a_loss() -> None:
    """Nothing said must not read as "it is done"."""

    def lost() -> bool:
        raise RuntimeError

    assert wait_until(lost, None, 1.0) == NOTHING

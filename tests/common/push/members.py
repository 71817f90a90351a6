"""A learner and engines as threads of this process: every one has connections of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from common.machine.address import LOOPBACK
from common.push.meeting import (
    READY,
    SENDER,
    Group,
    Meeting,
    MeetingPlace,
    empty_bucket,
    join,
)
from common.push.plan import PushPlan, TensorSpec
from common.push.wire import Fingerprints, Named, receive, send

CPU = torch.device("cpu")
_NUMBERS = itertools.count()

Receive = Callable[[PushPlan, Group], Any]


def plan_of(tensors: Mapping[str, Tensor], bucket_bytes: int = 1 << 20) -> PushPlan:
    """A push of these tensors."""
    specs = []
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        specs.append(TensorSpec(name, dtype, tuple(tensor.shape)))
    return PushPlan(tuple(specs), bucket_bytes, "model")


def named(plan: PushPlan, tensors: Mapping[str, Tensor]) -> Named:
    """The tensors of a plan, in its order."""
    for spec in plan.tensors:
        yield spec, tensors[spec.name]


def received(plan: PushPlan, group: Group) -> dict[str, Tensor]:
    """Copies of all tensors of a push."""
    return {name: tensor.clone() for name, tensor in receive(plan, group)}


def taken(plan: PushPlan, group: Group, how: Receive = received) -> Any:
    """A receiver's part in a push, which it leaves whatever becomes of it."""
    try:
        result = how(plan, group)
    except BaseException:
        group.leave("a receiver failed")
        raise
    group.leave()
    return result


def sent(
    plan: PushPlan,
    tensors: Named,
    place: MeetingPlace,
    meeting: Meeting,
    device: torch.device,
) -> Fingerprints:
    """What was sent to all members of a meeting, which the sender leaves whatever becomes of it."""
    groups: list[Group] = []

    def connect() -> Group:
        store = place.store(meeting)
        store.set(READY, "")
        groups.append(join(meeting, SENDER, store, device))
        return groups[0]

    broken = "the learner failed"
    try:
        empty = empty_bucket(meeting)
        fingerprints = send(plan, device, connect, tensors, empty)
        broken = ""
        return fingerprints
    finally:
        for group in groups:
            group.leave(broken)


class Members:
    """One learner, and as many receivers as are asked for."""

    def __init__(
        self, num_receivers: int, timeout_s: float = 20.0, backend: str = "gloo"
    ) -> None:
        self._place = MeetingPlace(LOOPBACK)
        key = f"test/{next(_NUMBERS)}"
        self.meeting = Meeting(
            LOOPBACK,
            self._place.port,
            key,
            backend,
            1 + num_receivers,
            timeout_s,
        )
        self._threads = ThreadPoolExecutor(num_receivers)

    def receiving(
        self, rank: int, plan: PushPlan, how: Receive = received
    ) -> Future[Any]:
        """A receiver of this rank, begun."""

        def run() -> Any:
            group = join(self.meeting, rank, self.meeting.store(), CPU)
            return taken(plan, group, how)

        return self._threads.submit(run)

    def send(self, plan: PushPlan, tensors: Mapping[str, Tensor]) -> Fingerprints:
        """The learner's part, in this thread."""
        return self.send_from(plan, named(plan, tensors))

    def send_from(self, plan: PushPlan, tensors: Named) -> Fingerprints:
        return sent(plan, tensors, self._place, self.meeting, CPU)

"""Buckets in memory that processes of one machine share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from common.machine.address import LOOPBACK
from common.push.host_memory import HostMemory, shared_bucket
from common.push.meeting import Meeting, MeetingPlace, join, memory_id
from common.push.plan import PushPlan
from common.push.wire import receive
from tests.common.push.members import CPU, Members, named, plan_of, sent, taken

WEIGHTS = {f"w{number}": torch.arange(300.0) + number for number in range(9)}
PLAN = plan_of(WEIGHTS, bucket_bytes=2000)


def receive_here(meeting: Meeting, plan: Any, outcome: Any) -> None:
    """In a process of its own: put down its memory, and whether what came is what was sent."""
    group = join(meeting, 1, meeting.store(), CPU)
    arrived = taken(PushPlan.of_json(plan), group)
    is_equal = all(torch.equal(arrived[name], WEIGHTS[name]) for name in WEIGHTS)
    outcome.put((memory_id(), is_equal))


def test_another_process_opens_the_buckets() -> None:
    place = MeetingPlace(LOOPBACK)
    meeting = Meeting(LOOPBACK, place.port, "push", "shm", 2, 60.0)
    processes = multiprocessing.get_context("spawn")
    outcome = processes.Queue()
    arguments = (meeting, PLAN.to_json(), outcome)
    receiver = processes.Process(target=receive_here, args=arguments)
    receiver.start()
    sent(PLAN, named(PLAN, WEIGHTS), place, meeting, CPU)
    assert outcome.get(timeout=60) == (memory_id(), True)
    receiver.join(60)


def open_buckets() -> Iterator[Path]:
    """Descriptors of this process."""
    for descriptor in Path("/proc/self/fd").iterdir():
        # Some are closed before they are looked at, such as that of the listing.
        with suppress(FileNotFoundError):
            if "sightline-bucket" in str(descriptor.readlink()):
                yield descriptor


def test_nothing_stays_open_after_a_push() -> None:
    members = Members(1, backend="shm")
    seen: list[int] = []

    def counting(plan: PushPlan, group: Any) -> None:
        for _ in receive(plan, group):
            seen.append(len(list(open_buckets())))

    receiver = members.receiving(1, PLAN, counting)
    members.send(PLAN, WEIGHTS)
    receiver.result()
    # One that is filled while the other is read.
    assert max(seen) == 2
    assert list(open_buckets()) == []


def test_a_bucket_that_may_not_be_opened_says_what_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = HostMemory()
    handle = memory.handle_of(shared_bucket(10, torch.uint8, CPU)[:4])

    def refused(path: Path) -> Any:
        raise PermissionError(f"no permission to open {path}")

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(RuntimeError, match=r"no permission .*; set weights.wire = gl"):
        memory.opened(handle)


def test_a_bucket_of_a_process_that_is_gone_is_a_lost_learner() -> None:
    with pytest.raises(FileNotFoundError):
        HostMemory().opened("/proc/self/fd/100000")

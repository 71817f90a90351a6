"""The group of a push over gloo or NCCL: torch's own, made by hand, since the default group of a process is others'.

gloo cannot be interrupted: a member that waits for one that has died waits to its limit. So nobody waits inside it.
Members ask whether a bucket is there, and look into the store whether somebody said that it never will be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from common.push.meeting import (
    SENDER,
    Meeting,
    PushBroken,
    address_towards,
    bucket_device,
    tell_broken,
)
from common.push.waiting import num_done, say_done, wait_until

_left: list[tuple[Any, list[Any]]] = []
"""Groups that broke, with what they still wait for: torch would block whoever gives them up."""


class Collective:
    """A member of the group. All have to come."""

    def __init__(
        self, meeting: Meeting, rank: int, store: Any, device: torch.device
    ) -> None:
        self._meeting = meeting
        self._sends = rank == SENDER
        self._store = store
        self._here = address_towards(meeting.address)
        self._works: list[Any] = []
        self.device = bucket_device(meeting, device)
        _bury()
        self._await_all(rank)
        make = _gloo if meeting.backend == "gloo" else _nccl
        try:
            self._group: Any = make(meeting, rank, store, self._here)
        except (RuntimeError, ValueError) as error:
            tell_broken(store, str(error))
            raise self.broken(str(error), "to connect to all other members") from error

    def _await_all(self, rank: int) -> None:
        """Return when every member has come as far as this; only then does torch connect them."""
        expected = f"all {self._meeting.num_members} members to come"
        self._store.set(f"here/{rank}", "")
        keys = [f"here/{other}" for other in range(self._meeting.num_members)]
        self.wait_for(lambda: bool(self._store.check(keys)), expected)

    def broadcast(self, buffer: Tensor) -> Work:
        work = self._group.broadcast(buffer, SENDER)
        self._works = [work for work in self._works if not work.is_completed()]
        self._works.append(work)
        return Work(self, work)

    def finish(self) -> None:
        expected = "all receivers to have every bucket"
        if self._sends:
            num_receivers = self._meeting.num_members - 1
            self.wait_for(lambda: num_done(self._store) == num_receivers, expected)
            return
        try:
            say_done(self._store)
        except RuntimeError as error:
            raise self.broken(str(error), expected) from error

    def leave(self, broken: str = "") -> None:
        if broken:
            tell_broken(self._store, broken)
            if self._meeting.backend == "nccl":
                self._group.abort()
            _left.append((self._group, self._works))
        elif self._meeting.backend == "nccl":
            # Else torch may abort it while its last bucket is on its way to others.
            self._group.shutdown()
        ending = [self._group]
        self._group = None
        self._works = []
        # The end of a group waits for threads of gloo's, which look up every 10 ms; the weights are here by then.
        Thread(target=ending.clear, name="end of a push").start()

    def wait_for(self, is_done: Callable[[], bool], expected: str) -> None:
        """Return when it is done (PushBroken when a member says that it will not be, or nothing comes in time)."""
        got = wait_until(is_done, self._store, self._meeting.timeout_s)
        if got:
            raise self.broken(got, expected)

    def broken(self, got: str, expected: str) -> PushBroken:
        """The error that names both ends."""
        meeting = self._meeting
        first_line = got.partition("\n")[0]
        return PushBroken(
            f"weights between the learner at {meeting.address}:{meeting.port} and {self._here}: expected {expected} "
            f"within {meeting.timeout_s:g} s, got: {first_line}; look at the logs of both, open TCP between all nodes "
            "of the run, or raise weights.timeout_s"
        )


class Work:
    """A bucket on its way."""

    def __init__(self, group: Collective, work: Any) -> None:
        self._group = group
        self._work = work

    def wait(self) -> None:
        """Return when it is there (PushBroken when it will not be)."""
        self._group.wait_for(self._work.is_completed, "a bucket")
        try:
            self._work.wait()
        except RuntimeError as error:
            raise self._group.broken(str(error), "a bucket") from error


def _gloo(meeting: Meeting, rank: int, store: Any, address: str) -> Any:
    gloo: Any = dist.ProcessGroupGloo  # type: ignore[attr-defined]
    options = gloo._Options()
    options._timeout = meeting.limit
    options._devices = [gloo.create_device(hostname=address)]
    return gloo(store, rank, meeting.num_members, options)


def _nccl(meeting: Meeting, rank: int, store: Any, address: str) -> Any:
    nccl: Any = dist.ProcessGroupNCCL  # type: ignore[attr-defined]
    options = nccl.Options()
    options._timeout = meeting.limit
    # Else torch ends the process of every member that waits too long for one that has died.
    with _variable("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"):
        return nccl(store, rank, meeting.num_members, options)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _bury() -> None:
    """Give up the broken groups that wait for nothing any more."""
    waiting = []
    for group, works in _left:
        if not all(work.is_completed() for work in works):
            waiting.append((group, works))
    _left[:] = waiting

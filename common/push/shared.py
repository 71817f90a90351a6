"""The group of a push whose members can open each other's memory: nothing is sent.

A rank's buckets stay where they are filled; a worker of an engine that shares the memory opens them by a handle and
copies them: on one GPU (`weights.transport = ipc`), or on one machine. Workers announce themselves, so any of a run's
engines may take part: a rank whose memory none reads goes on without waiting. Handles and turns pass through the store
as texts:

    here/MEMORY            how many workers read from the rank with this memory
    here                   how many there are in all
    MEMORY/BUCKET/WORKER   the handle of a bucket, from when it is filled until the worker has copied it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from common.push.meeting import (
    SENDER,
    Meeting,
    PushBroken,
    tell_broken,
)
from common.push.waiting import num_done, say_done, wait_until

_HERE = "here"


class Memory(Protocol):
    """Memory that several processes can open.

    Attributes:
        name: the same one for all of them.
        device: of its tensors.
    """

    name: str
    device: torch.device

    def settle(self) -> None:
        """Return when all that this process has queued there is done."""
        ...

    def handle_of(self, buffer: Tensor) -> str:
        """What another process needs to open the buffer."""
        ...

    def opened(self, handle: str) -> Tensor:
        """The other process's bytes, from the beginning of its buffer."""
        ...

    def close(self) -> None:
        """Free what was handed over and is not read any more."""
        ...


class SharedBuckets:
    """A member with one memory: the rank that fills buckets there, or a worker that reads them."""

    def __init__(self, meeting: Meeting, rank: int, store: Any, memory: Memory) -> None:
        self.device = memory.device
        self._memory = memory
        self._meeting = meeting
        self._sends = rank == SENDER
        self._store = store
        self._num_buckets = 0
        self._readers: Sequence[int] = ()
        here = f"{_HERE}/{memory.name}"
        if self._sends:
            self._await_all("all engines to come", lambda: self._number_of(_HERE))
            self._readers = range(self._number_of(here))
            return
        with self._reaching_learner():
            self._reader = int(store.add(here, 1)) - 1
            store.add(_HERE, 1)

    def broadcast(self, buffer: Tensor) -> _Read | _Copied:
        bucket = f"{self._memory.name}/{self._num_buckets}"
        self._num_buckets += 1
        if not self._sends:
            return _Copied(self, f"{bucket}/{self._reader}", buffer)
        keys = [f"{bucket}/{reader}" for reader in self._readers]
        if keys:
            # What fills the buffer may only be queued so far, on a GPU.
            self._memory.settle()
        with self._reaching_learner():
            for key in keys:
                self._store.set(key, self._memory.handle_of(buffer))
        return _Read(self, keys)

    def finish(self) -> None:
        if self._sends:
            expected = "every engine to have every bucket"
            self._await_all(expected, lambda: num_done(self._store))
            return
        with self._reaching_learner():
            say_done(self._store)

    def leave(self, broken: str = "") -> None:
        if broken:
            tell_broken(self._store, broken)
        if self._sends:
            self._memory.close()

    def await_read(self, keys: Sequence[str]) -> None:
        """Return when the workers have read the buckets under these keys (PushBroken)."""

        def are_gone() -> bool:
            return not any(self._store.check([key]) for key in keys)

        self._await(are_gone, "an engine to read a bucket")

    def read(self, key: str, buffer: Tensor) -> None:
        """Copy the bucket under this key, once it is there (PushBroken)."""
        self._await(
            lambda: bool(self._store.check([key])), "the learner to fill a bucket"
        )
        with self._reaching_learner():
            handle = self._store.get(key).decode()
            shared = self._memory.opened(handle)
        buffer.copy_(shared[: len(buffer)])
        self._memory.settle()
        with self._reaching_learner():
            # Tells the rank, and keeps the store as small as it was.
            self._store.delete_key(key)

    def _await_all(self, expected: str, number: Callable[[], int]) -> None:
        num_readers = self._meeting.num_members - 1
        self._await(lambda: number() == num_readers, expected)

    def _await(self, is_done: Callable[[], bool], expected: str) -> None:
        got = wait_until(is_done, self._store, self._meeting.timeout_s)
        if got:
            raise self._broken(got, expected)

    @contextmanager
    def _reaching_learner(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise self._broken(str(error), "to reach the learner") from error

    def _number_of(self, key: str) -> int:
        number: int = self._store.add(key, 0)
        return number

    def _broken(self, got: str, expected: str) -> PushBroken:
        first_line = got.partition("\n")[0]
        return PushBroken(
            f"weights in {self._memory.name}: expected {expected} within {self._meeting.timeout_s:g} s, got: "
            f"{first_line}; see the logs of learner and engines, or raise weights.timeout_s"
        )


class _Read:
    """A bucket that workers read."""

    def __init__(self, group: SharedBuckets, keys: Sequence[str]) -> None:
        self._group = group
        self._keys = keys

    def wait(self) -> None:
        self._group.await_read(self._keys)


class _Copied:
    """A bucket to be copied from the rank's memory."""

    def __init__(self, group: SharedBuckets, key: str, buffer: Tensor) -> None:
        self._group = group
        self._key = key
        self._buffer = buffer

    def wait(self) -> None:
        self._group.read(self._key, self._buffer)

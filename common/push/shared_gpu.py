"""The group of a push where every engine shares the GPU of a rank (`weights.transport = ipc`): nothing is sent.

A rank's buckets stay where they are filled; an engine's worker on the same GPU opens them by a handle of CUDA's and
copies them. All ranks send, each to the worker on its GPU. Handles and turns pass through the store, as texts.
"""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import torch
from torch import Tensor

from common.push.meeting import (
    BROKEN,
    SENDER,
    Meeting,
    PushBroken,
    tell_broken,
)

NAP_S = 5e-4


class SharedGpu:
    """A member on one GPU: the rank that fills buckets there, or the worker that reads them."""

    def __init__(
        self, meeting: Meeting, rank: int, store: Any, device: torch.device
    ) -> None:
        self.device = device
        self._meeting = meeting
        self._sends = rank == SENDER
        self._gpu = str(torch.cuda.get_device_properties(device).uuid)
        self._store = store
        self._number = 0

    def broadcast(self, buffer: Tensor) -> _Read | _Copied:
        key = f"{self._gpu}/{self._number}"
        self._number += 1
        if self._sends:
            # What fills the buffer is only queued on the GPU so far.
            torch.cuda.current_stream(self.device).synchronize()
            self._store.set(key, _handle_of(buffer))
            return _Read(self, key)
        return _Copied(self, key, buffer)

    def waited(self, key: str) -> str:
        """The text under this key, once the other side has set it (PushBroken when it does not in time)."""
        end = time.monotonic() + self._meeting.timeout_s
        while not self._store.check([key]):
            if self._store.check([BROKEN]):
                raise self._broken(self._store.get(BROKEN).decode())
            if time.monotonic() > end:
                raise self._broken("nothing")
            time.sleep(NAP_S)
        text: str = self._store.get(key).decode()
        return text

    def _broken(self, got: str) -> PushBroken:
        other = "an engine" if self._sends else "the learner"
        return PushBroken(
            f"weights over GPU {self._gpu}: expected {other} on the same GPU within {self._meeting.timeout_s:g} s, "
            f"got: {got}; see its log"
        )

    def note(self, key: str) -> None:
        """Tell the other side."""
        self._store.set(key, "done")

    def leave(self, broken: str = "") -> None:
        if broken:
            tell_broken(self._store, broken)
        if self._sends:
            torch.cuda.ipc_collect()


class _Read:
    """A bucket that the worker reads."""

    def __init__(self, group: SharedGpu, key: str) -> None:
        self._group = group
        self._key = key

    def wait(self) -> None:
        self._group.waited(f"{self._key}/read")


class _Copied:
    """A bucket to be copied from the rank's memory."""

    def __init__(self, group: SharedGpu, key: str, buffer: Tensor) -> None:
        self._group = group
        self._key = key
        self._buffer = buffer

    def wait(self) -> None:
        handle = self._group.waited(self._key)
        shared = _opened(handle, self._buffer.device)
        self._buffer.copy_(shared[: len(self._buffer)])
        torch.cuda.current_stream(self._buffer.device).synchronize()
        self._group.note(f"{self._key}/read")


def _handle_of(buffer: Tensor) -> str:
    """What another process on this GPU needs to open the buffer."""
    storage: Any = buffer.untyped_storage()
    parts = []
    for part in storage._share_cuda_():
        if isinstance(part, bytes):
            part = {"bytes": base64.b64encode(part).decode()}
        parts.append(part)
    return json.dumps([buffer.storage_offset(), parts])


def _opened(handle: str, device: torch.device) -> Tensor:
    offset, parts = json.loads(handle)
    arguments = []
    for part in parts:
        if isinstance(part, dict):
            part = base64.b64decode(part["bytes"])
        arguments.append(part)
    # The sender counts GPUs as it sees them.
    arguments[0] = device.index
    storage_class: Any = torch.UntypedStorage
    storage = storage_class._new_shared_cuda(*arguments)
    whole = torch.empty(0, dtype=torch.uint8, device=device)
    whole.set_(storage)
    return whole[offset:]

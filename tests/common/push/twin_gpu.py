"""A GPU without one: memory of this process, which its threads open by handles, as processes open a GPU's."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import torch
from torch import Tensor

_HANDED_OVER: dict[str, Tensor] = {}
_NUMBERS = itertools.count()


class TwinMemory:
    """A `common.push.shared.Memory`."""

    device = torch.device("cpu")

    def __init__(self, name: str) -> None:
        self.name = name

    def settle(self) -> None:
        return None

    def handle_of(self, buffer: Tensor) -> str:
        handle = f"{self.name}#{next(_NUMBERS)}"
        _HANDED_OVER[handle] = buffer
        return handle

    def opened(self, handle: str) -> Tensor:
        # Another GPU's memory cannot be opened.
        assert handle.startswith(f"{self.name}#")
        # A handle is good for one reader.
        return _HANDED_OVER.pop(handle)

    def close(self) -> None:
        return None


def of_this_thread(device: Any) -> TwinMemory:
    """The GPU that a thread is on, by the name of its pool."""
    return TwinMemory(threading.current_thread().name.partition("_")[0])

"""Memory of a machine that several processes open: a file that stands in no folder and ends with its bucket."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class HostMemory:
    """That of this machine, a `common.push.shared.Memory`."""

    name = "shared memory"
    device = torch.device("cpu")

    def __init__(self) -> None:
        # Kept mapped: pages that are new to a process cost more than the bytes in them.
        self._opened: dict[str, Tensor] = {}

    def settle(self) -> None:
        return None

    def handle_of(self, buffer: Tensor) -> str:
        return str(buffer.untyped_storage().filename)

    def opened(self, handle: str) -> Tensor:
        if handle not in self._opened:
            try:
                num_bytes = Path(handle).stat().st_size
            except PermissionError as error:
                raise RuntimeError(f"{error}; set weights.wire = gloo") from error
            self._opened[handle] = _mapped(handle, num_bytes)
        return self._opened[handle]

    def close(self) -> None:
        return None


def shared_bucket(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.empty`, of memory that other processes of this user can open."""
    descriptor = os.memfd_create("sightline-bucket")
    path = f"/proc/{os.getpid()}/fd/{descriptor}"
    bucket = _mapped(path, size * dtype.itemsize).view(dtype)
    weakref.finalize(bucket, os.close, descriptor)
    return bucket


def _mapped(path: str, num_bytes: int) -> Tensor:
    storage: Any = torch.UntypedStorage.from_file(path, shared=True, nbytes=num_bytes)
    return torch.empty(0, dtype=torch.uint8).set_(storage)

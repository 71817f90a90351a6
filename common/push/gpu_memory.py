"""Memory of a GPU that several processes open, by handles of CUDA's."""

from __future__ import annotations

import base64
import json
from typing import Any

import torch
from torch import Tensor

_EXPANDABLE = "expandable_segments"


class GpuMemory:
    """That of a GPU, a `common.push.shared.Memory`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.name = f"GPU {torch.cuda.get_device_properties(device).uuid}"

    def settle(self) -> None:
        torch.cuda.current_stream(self.device).synchronize()

    def handle_of(self, buffer: Tensor) -> str:
        storage: Any = buffer.untyped_storage()
        parts = []
        for part in storage._share_cuda_():
            if isinstance(part, bytes):
                part = {"bytes": base64.b64encode(part).decode()}
            parts.append(part)
        return json.dumps([buffer.storage_offset(), parts])

    def opened(self, handle: str) -> Tensor:
        offset, parts = json.loads(handle)
        arguments = []
        for part in parts:
            if isinstance(part, dict):
                part = base64.b64decode(part["bytes"])
            arguments.append(part)
        # The sender counts GPUs as it sees them.
        arguments[0] = self.device.index
        storage_class: Any = torch.UntypedStorage
        storage = storage_class._new_shared_cuda(*arguments)
        whole = torch.empty(0, dtype=torch.uint8, device=self.device)
        whole.set_(storage)
        return whole[offset:]

    def close(self) -> None:
        torch.cuda.ipc_collect()


def shareable(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.empty`, of memory that other processes can open.

    torch hands over what lies in an expandable segment by a system call that containers refuse.
    """
    settings = torch._C._accelerator_getAllocatorSettings()
    # All of them, since what is not named falls back to torch's default.
    without = [f"{_EXPANDABLE}:False"]
    for setting in settings.split(","):
        if setting and _EXPANDABLE not in setting:
            without.append(setting)
    torch._C._accelerator_setAllocatorSettings(",".join(without))
    try:
        return torch.empty(size, dtype=dtype, device=device)
    finally:
        torch._C._accelerator_setAllocatorSettings(settings)

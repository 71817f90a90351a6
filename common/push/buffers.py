"""Memory of incoming buckets, used again where nobody keeps it: pages that are new cost more than the bytes in them."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from common.weights import Array


class Buffers:
    """Buffers of one size or less on a device.

    Args:
        num_bytes: of the largest.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._num_bytes = num_bytes
        self._device = device
        # With each memory what its last user holds.
        self._memories: list[tuple[Array, weakref.ref[Array]]] = []

    def take(self, num_bytes: int) -> Tensor:
        """A buffer that is free again once neither it nor any view of it is kept."""
        if self._device.type != "cpu":
            # There torch keeps memory for its next user by itself.
            return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        memory = self._free()
        # Every tensor on this memory keeps this array alive, and with it the reference.
        lent = memory[:num_bytes]
        self._memories.append((memory, weakref.ref(lent)))
        return torch.from_numpy(lent)

    def _free(self) -> Array:
        for number, (memory, lent) in enumerate(self._memories):
            if lent() is None:
                del self._memories[number]
                return memory
        return np.empty(self._num_bytes, np.uint8)

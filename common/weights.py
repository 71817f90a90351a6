"""Weights on their way from learner to engine: arrays, and the checksum that both ends of a push agree on.

Names are those of `common.checkpoint.layout`. numpy has no bfloat16, so such tensors travel as their bits, `uint16`,
under the name + "@bfloat16".
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import torch

from common.protocols import Tensors

Array: TypeAlias = "np.ndarray[Any, Any]"

BFLOAT16 = "@bfloat16"


def to_arrays(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, Array]:
    """Arrays by travelling name, sharing memory with contiguous CPU tensors."""
    arrays = {}
    for name, tensor in tensors:
        # A view where the tensor already lies on the CPU in order.
        value = tensor.detach().cpu().contiguous()
        if value.dtype == torch.bfloat16:
            name = name + BFLOAT16
            value = value.view(torch.uint16)
        arrays[name] = value.numpy()
    return arrays


def from_array(
    name: str,
    array: Array,
) -> tuple[str, torch.Tensor]:
    """Name and tensor of one travelling array.

    They share their memory, also where the array is read-only: do not write to the result.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The given NumPy array is not writable"
        )
        value = torch.from_numpy(array)
    if name.endswith(BFLOAT16):
        name = name.removesuffix(BFLOAT16)
        value = value.view(torch.bfloat16)
    return name, value


def from_arrays(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Tensors by name, sharing memory with the arrays."""
    by_name = {}
    for travelling_name, array in tensors.items():
        name, value = from_array(travelling_name, array)
        by_name[name] = value
    return by_name


def checksum(tensors: Tensors) -> str:
    """SHA-256 over names in sorted order, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        # Separators that no name contains, so that no two sets have the same bytes.
        header = f"{name}\x1f{array.dtype.str}\x1f{array.shape}\x1e"
        digest.update(header.encode())
        flat_bytes = array.reshape(-1).view(np.uint8)
        digest.update(flat_bytes.data)
    return digest.hexdigest()

"""Weights on their way from learner to engine: arrays, and the checksum that both ends of a push agree on.

Names are those of `common.checkpoint.layout`. numpy has no bfloat16, so such tensors travel as their bits, `uint16`,
under the name + "@bfloat16".
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import torch

from common.protocols import Tensors
from common.push.fingerprint import fingerprint, fingerprint_of_all
from common.push.plan import TensorSpec

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
    return from_travelling(name, value)


def from_travelling(
    name: str,
    tensor: torch.Tensor,
) -> tuple[str, torch.Tensor]:
    """The name and dtype that a tensor had before `to_arrays`."""
    if name.endswith(BFLOAT16):
        return name.removesuffix(BFLOAT16), tensor.view(torch.bfloat16)
    return name, tensor


def from_arrays(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Tensors by name, sharing memory with the arrays."""
    by_name = {}
    for travelling_name, array in tensors.items():
        name, value = from_array(travelling_name, array)
        by_name[name] = value
    return by_name


def checksum(tensors: Tensors) -> str:
    """One fingerprint over names, dtypes, shapes and bytes, in whatever order they come; 64 hexadecimal digits.

    It finds torn, stale, missing and exchanged tensors, at about the speed of memory. It is the same on every machine
    and for every transport, and no protection from somebody who wants to deceive: see `common.push.fingerprint`.
    """
    fingerprints = []
    for travelling_name, array in tensors.items():
        name, value = from_array(travelling_name, np.asarray(array, order="C"))
        dtype = str(value.dtype).removeprefix("torch.")
        spec = TensorSpec(name, dtype, tuple(array.shape))
        fingerprints.append((spec, fingerprint(value)))
    return fingerprint_of_all(fingerprints)

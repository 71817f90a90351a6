"""In the rollout worker: arrays are written to shared memory, from which the engine maps them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from actors.weights.shared_memory import check_room, shared_folder
from common.protocols import Tensors


@contextmanager
def shared_file(tensors: Tensors) -> Iterator[Path]:
    """A safetensors file in shared memory, readable by this user only, removed afterwards.

    Raises:
        UserError: shared memory is too small for it.
    """
    check_room(tensors)
    # safetensors writes an array's memory as it lies, strides ignored.
    contiguous = {}
    for name, array in tensors.items():
        contiguous[name] = np.ascontiguousarray(array)
    with shared_folder() as folder:
        path = folder / "weights.safetensors"
        # Created first, for its rights: which ones `save_file` gives to a new file is left to safetensors.
        path.touch(mode=0o600)
        save_file(contiguous, path)
        yield path

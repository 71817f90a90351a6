"""Whole weights in shared memory: written once by a rollout worker, mapped by all engines of the node."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from actors.weights.push_check import check_bytes
from actors.weights.shared_memory import check_room, shared_folder, sweep
from common.protocols import Tensors
from common.records import WeightManifest
from common.weights import Array, from_travelling

MAX_FILES = 4


def shared_weights(
    manifest: WeightManifest,
    tensors: Tensors,
    patience_s: float,
) -> AbstractContextManager[Path]:
    """A folder of safetensors files in shared memory (see `shared_folder`), which the first engine of a node writes.

    Raises:
        UserError: shared memory is too small, or the bytes are not those of the manifest.
    """
    fill = partial(_write, manifest, tensors)
    return shared_folder(manifest.checksum, fill, patience_s)


def read_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """What `shared_weights` wrote, mapped: it is read when it is used, and a change of it is the caller's alone."""
    for path in sorted(folder.glob("*.safetensors")):
        # Through torch the tensors are mapped, through numpy copied.
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                yield from_travelling(name, weights.get_tensor(name))


def num_files() -> int:
    """A file of shared memory is written by one thread at a time."""
    return min(MAX_FILES, len(os.sched_getaffinity(0)))


def write_checked(
    manifest: WeightManifest,
    tensors: Tensors,
    writes: Sequence[Callable[[], None]],
) -> None:
    """Write the tensors to shared memory, side by side with their check.

    Raises:
        UserError: there is no room for them, or they are not the manifest's; what was written is of no use then.
    """
    # Of pushes whose engines were killed.
    sweep()
    num_bytes = sum(array.nbytes for array in tensors.values())
    check_room(num_bytes)
    with ThreadPoolExecutor(1 + len(writes)) as threads:
        tasks = [threads.submit(check_bytes, manifest, tensors)]
        for write in writes:
            tasks.append(threads.submit(write))
    for task in tasks:
        task.result()


def _write(
    manifest: WeightManifest,
    tensors: Tensors,
    folder: Path,
) -> None:
    writes = []
    for number, part in enumerate(_parts(tensors, num_files())):
        path = folder / f"{number}.safetensors"
        writes.append(partial(save_file, part, path))
    write_checked(manifest, tensors, writes)


def _parts(tensors: Tensors, num_parts: int) -> list[dict[str, Array]]:
    """The tensors in parts of about the same size."""
    parts: list[dict[str, Array]] = [{} for _ in range(num_parts)]
    sizes = [0] * num_parts
    largest_first = sorted(tensors, key=lambda name: -tensors[name].nbytes)
    for name in largest_first:
        smallest = sizes.index(min(sizes))
        # safetensors writes an array's memory as it lies, strides ignored.
        array = np.asarray(tensors[name], order="C")
        parts[smallest][name] = array
        sizes[smallest] += array.nbytes
    return parts

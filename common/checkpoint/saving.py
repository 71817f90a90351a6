"""Weights into safetensors files of limited size, a file in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from common.checkpoint.files import INDEX, WHOLE
from common.checkpoint.layout import layout_of_model

FILE_BYTES = 5_000_000_000
"""Largest size of a file."""


def save_tensors(
    directory: Path,
    tensors: Iterable[tuple[str, Tensor]],
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write a directory's weight files, and the index of several.

    Args:
        tensors: by name, each read once and in order.
        file_bytes: largest size of a file; a larger tensor has a file of its own.
    """
    files: list[Path] = []
    names_of: dict[Path, list[str]] = {}
    num_bytes = 0
    for batch in _batches(tensors, file_bytes):
        file = directory / f"{len(files)}.safetensors"
        save_file(batch, file, metadata={"format": "pt"})
        files.append(file)
        names_of[file] = list(batch)
        num_bytes += sum(tensor.nbytes for tensor in batch.values())
    if len(files) == 1:
        files[0].rename(directory / WHOLE)
        return
    weight_map = {}
    # How many there are is in their names, and known at the end.
    for number, file in enumerate(files, start=1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        file.rename(directory / name)
        weight_map.update(dict.fromkeys(names_of[file], name))
    index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def save_model(model: Any, directory: Path, file_bytes: int = FILE_BYTES) -> None:
    """Write a model's weights under the names that the hub would have, which vLLM reads as well.

    `save_pretrained` of transformers 5 gives names to CLIP's tower that vLLM does not read.

    Args:
        file_bytes: largest size of a file.
    """
    layout = layout_of_model(model)
    save_tensors(directory, layout.tensors(model.state_dict()), file_bytes)


def _batches(
    tensors: Iterable[tuple[str, Tensor]],
    file_bytes: int,
) -> Iterator[dict[str, Tensor]]:
    """Cut into files; tensors are contiguous, and none is another's memory."""
    batch: dict[str, Tensor] = {}
    num_bytes = 0
    for name, tensor in tensors:
        if batch and num_bytes + tensor.nbytes > file_bytes:
            yield batch
            batch = {}
            num_bytes = 0
        # safetensors takes no two tensors of the same memory.
        batch[name] = tensor.detach().cpu().clone().contiguous()
        num_bytes += tensor.nbytes
    if batch:
        yield batch

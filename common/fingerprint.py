"""Says whether two model folders are the same without reading hundreds of gigabytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from common.errors import UserError

_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".safetensors")
_BLOCK = 16 << 10
_NUM_BLOCKS = 16


def model_hash(directory: Path) -> str:
    """A hash over weights, configuration, tokenizer and templates of a Hugging Face folder, by name and content.

    Of a tensor of over 256 KiB it reads 16 evenly spaced blocks of 16 KiB, its first and last included: training moves
    all of a tensor, so two checkpoints differ there. Smaller tensors, headers and other files are read whole.

    Raises:
        UserError: the folder is no model directory, or a weight file is not one.
    """
    if not (directory / "config.json").is_file():
        raise UserError(
            f"model: expected a Hugging Face folder with config.json, got {directory}; check the path"
        )
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix in _SUFFIXES and path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            if path.suffix == ".safetensors":
                with path.open("rb") as file:
                    for start, length in _runs(file, path):
                        file.seek(start)
                        digest.update(file.read(length))
            else:
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _runs(file: BinaryIO, path: Path) -> Iterator[tuple[int, int]]:
    """Start and length of what is read: 8 bytes that hold the header's length, the header, blocks of every tensor."""
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(min(length, path.stat().st_size)))
        tensors = [
            entry["data_offsets"]
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"model: expected readable safetensors, got {path} with a damaged header; copy the checkpoint again"
        ) from error
    first = 8 + length
    yield 0, first
    for begin, end in tensors:
        room = end - begin - _BLOCK
        if room < _BLOCK * (_NUM_BLOCKS - 1):
            yield first + begin, end - begin
        else:
            yield from (
                (first + begin + room * block // (_NUM_BLOCKS - 1), _BLOCK)
                for block in range(_NUM_BLOCKS)
            )

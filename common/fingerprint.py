"""A hash that tells model folders apart without reading hundreds of gigabytes."""

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
    """A hash of the names and contents of a Hugging Face folder's weights, configuration, tokenizer and templates.

    Of a tensor of over 256 KiB only 16 evenly spaced blocks of 16 KiB are read, the first and the last among them.
    Training changes all of a tensor, so two checkpoints differ there. Smaller tensors, headers and all other files are
    read whole.

    Raises:
        UserError: this is no model directory, or a weight file is damaged.
    """
    if not (directory / "config.json").is_file():
        raise UserError(
            f"model: expected a Hugging Face folder with config.json, got {directory}; check the path"
        )
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix not in _SUFFIXES or not path.is_file():
            continue
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        if path.suffix != ".safetensors":
            digest.update(path.read_bytes())
            continue
        with path.open("rb") as file:
            for start, length in _hashed_ranges(file, path):
                file.seek(start)
                digest.update(file.read(length))
    return digest.hexdigest()


def _hashed_ranges(file: BinaryIO, path: Path) -> Iterator[tuple[int, int]]:
    """(start, length) in bytes of what is hashed: the header with its length in front, then blocks of every tensor."""
    header_length = int.from_bytes(file.read(8), "little")
    try:
        # A damaged length may be beyond any memory.
        header = json.loads(file.read(min(header_length, path.stat().st_size)))
        header.pop("__metadata__", None)
        tensors = [entry["data_offsets"] for entry in header.values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"model: expected readable safetensors, got {path} with a damaged header; copy the checkpoint again"
        ) from error
    data_start = 8 + header_length
    yield 0, data_start
    for begin, end in tensors:
        last_block = end - begin - _BLOCK
        if last_block < _BLOCK * (_NUM_BLOCKS - 1):
            yield data_start + begin, end - begin
            continue
        for block in range(_NUM_BLOCKS):
            offset = last_block * block // (_NUM_BLOCKS - 1)
            yield data_start + begin + offset, _BLOCK

"""A hash that tells model folders apart without reading hundreds of gigabytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from common.errors import UserError
from common.loading import check_folder

_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".safetensors")
_BLOCK = 16 << 10
_NUM_BLOCKS = 16
_LENGTH_BYTES = 8
"""A safetensors file begins with the length of its JSON header in so many bytes. Tensors follow the header."""


def model_hash(directory: Path) -> str:
    """A hash of the names and contents of a Hugging Face folder's weights, configuration, tokenizer and templates.

    Of a tensor of over 256 KiB only 16 evenly spaced blocks of 16 KiB are read, the first and the last among them.
    Training changes all of a tensor, so two checkpoints differ there. Smaller tensors, headers and all other files are
    read whole.

    Raises:
        UserError: this is no model directory, or a weight file is damaged.
    """
    check_folder(directory, "model")
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix not in _SUFFIXES or not path.is_file():
            continue
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        if path.suffix == ".safetensors":
            for block in _hashed_blocks(path):
                digest.update(block)
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _hashed_blocks(path: Path) -> Iterator[bytes]:
    """What is hashed of a weight file."""
    with path.open("rb") as file:
        for start, length in _hashed_ranges(file, path):
            file.seek(start)
            yield file.read(length)


def _hashed_ranges(file: BinaryIO, path: Path) -> Iterator[tuple[int, int]]:
    """(start, length) in bytes of what is hashed: the header with its length in front, then blocks of every tensor."""
    header_length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    # A damaged length may be beyond any memory.
    readable_length = min(header_length, path.stat().st_size)
    try:
        header = json.loads(file.read(readable_length))
        header.pop("__metadata__", None)
        tensors = [entry["data_offsets"] for entry in header.values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"model: expected readable safetensors, got {path} with a damaged header; copy the checkpoint again"
        ) from error
    data_start = _LENGTH_BYTES + header_length
    yield 0, data_start
    for begin, end in tensors:
        start = data_start + begin
        length = end - begin
        if length < _BLOCK * _NUM_BLOCKS:
            yield start, length
            continue
        # Evenly spaced: the first block begins the tensor, the last one ends it.
        last_offset = length - _BLOCK
        for block in range(_NUM_BLOCKS):
            offset = last_offset * block // (_NUM_BLOCKS - 1)
            yield start + offset, _BLOCK

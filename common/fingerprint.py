"""Says whether two model folders are the same without reading hundreds of gigabytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from common.errors import UserError

_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".safetensors", ".bin")
_BLOCK = 1 << 20
_NUM_BLOCKS = 64


def model_hash(directory: Path) -> str:
    """A hash over weights, configuration, tokenizer and templates of a Hugging Face folder, by name and content.

    Of files over 64 MiB it reads the size and 64 evenly spaced blocks of 1 MiB, the last one included: training moves
    every block of a tensor, so two checkpoints differ there.

    Raises:
        UserError: the folder is no model directory.
    """
    if not (directory / "config.json").is_file():
        raise UserError(f"model: expected a Hugging Face folder with config.json, got {directory}; check the path")
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix in _SUFFIXES and path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                for block in range(_NUM_BLOCKS):
                    if size > _NUM_BLOCKS * _BLOCK:
                        file.seek((size - _BLOCK) * block // (_NUM_BLOCKS - 1))
                    digest.update(file.read(_BLOCK))
    return digest.hexdigest()

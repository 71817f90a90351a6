"""A folder's hash changes with every tensor, however small it is and however large those around it are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.errors import UserError
from common.fingerprint import model_hash

SIZES = {"a": 60 << 20, "b.bias": 4 << 10, "c": 20 << 20}
"""Bytes, one tensor after the other."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    weights = {}
    for name, size in SIZES.items():
        weights[name] = torch.zeros(size, dtype=torch.uint8)
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


def test_every_tensor_counts(folder: Path) -> None:
    """One byte after the other changes: c's last and first, the small tensor's last, a's first."""
    hashes = [model_hash(folder)]
    bytes_from_end = (1, SIZES["c"], SIZES["c"] + 1, sum(SIZES.values()))
    for from_end in bytes_from_end:
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(-from_end, os.SEEK_END)
            file.write(b"\1")
        hashes.append(model_hash(folder))
        assert model_hash(folder) == hashes[-1]
        assert len(set(hashes)) == len(hashes), from_end


def test_settings_count_and_other_files_do_not(folder: Path) -> None:
    before = model_hash(folder)
    (folder / "README.md").write_text("read me")
    assert model_hash(folder) == before
    (folder / "processor_config.json").write_text("{}")
    assert model_hash(folder) != before


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 100, b"\2" + b"\0" * 7 + b"[]"],
    ids=["empty", "noise", "list"],
)
def test_a_damaged_header_is_said(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="expected readable safetensors"):
        model_hash(folder)

"""Weight files of limited size."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from common.checkpoint.files import INDEX, WHOLE, tensor_shapes, tensors
from common.checkpoint.saving import save_tensors

TENSORS = {f"layer.{number}": torch.full((8,), float(number)) for number in range(5)}
"""Five of 32 bytes."""


def test_one_file_has_no_index(tmp_path: Path) -> None:
    save_tensors(tmp_path, TENSORS.items())
    (file,) = tmp_path.iterdir()
    assert file.name == WHOLE
    torch.testing.assert_close(load_file(file), TENSORS, rtol=0, atol=0)


def test_files_are_cut_before_they_grow_too_large(tmp_path: Path) -> None:
    save_tensors(tmp_path, TENSORS.items(), file_bytes=70)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 5 * 32
    first, second, third = (f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))
    assert index["weight_map"] == {
        "layer.0": first,
        "layer.1": first,
        "layer.2": second,
        "layer.3": second,
        "layer.4": third,
    }
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {INDEX, first, second, third}
    read = dict(tensors(tmp_path, lambda name: name != "layer.3"))
    assert read.keys() == TENSORS.keys() - {"layer.3"}
    assert tensor_shapes(tmp_path) == dict.fromkeys(TENSORS, (8,))


def test_tensors_that_share_memory_are_written_whole(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    parts = {"first": whole[0], "column": whole[:, 1], "again": whole}
    save_tensors(tmp_path, parts.items())
    torch.testing.assert_close(load_file(tmp_path / WHOLE), parts, rtol=0, atol=0)

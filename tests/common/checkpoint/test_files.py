"""Which safetensors files of a model directory are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.checkpoint.files import INDEX, weight_files
from common.errors import UserError


def names(folder: Path) -> list[str]:
    return [file.name for file in weight_files(folder)]


def test_an_index_decides_then_the_usual_name(tmp_path: Path) -> None:
    for name in ("consolidated", "b", "a"):
        (tmp_path / f"{name}.safetensors").touch()
    assert names(tmp_path) == [
        "a.safetensors",
        "b.safetensors",
        "consolidated.safetensors",
    ]
    (tmp_path / "model.safetensors").touch()
    assert names(tmp_path) == ["model.safetensors"]
    weight_map = {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert names(tmp_path) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("text", ["", "{}", '{"weight_map": {}}', '{"weight_map": 3}'])
def test_an_index_that_names_no_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(UserError, match=r"expected a weight_map .* got none; copy"):
        weight_files(tmp_path)

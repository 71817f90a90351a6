"""A video is refused as one wherever a row may have it: in a column, as a mark in a text, or as the picture's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.records import Dropped
from tests.common.importer_cases import CASES, PICTURE, case_rows, imported, write

MP4 = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + b"\0" * 60
WEBM = b"\x1aE\xdf\xa3" + b"\0" * 60


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(PICTURE)
    return folder


def dropped_of(name: str, row: dict[str, Any], root: Path) -> list[Dropped]:
    path = write(root.parent / CASES[name].file, [row])
    records, dropped = imported(name, path, root)
    assert records == []
    return dropped


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("column", ["video", "videos"])
def test_a_column_of_videos(name: str, column: str, root: Path) -> None:
    (row,) = case_rows(name, {column: ["a.mp4"]})
    (dropped,) = dropped_of(name, row, root)
    assert dropped.reason == "video"
    assert "got a video" in dropped.detail


@pytest.mark.parametrize("name", CASES)
def test_a_mark_in_the_question(name: str, root: Path) -> None:
    (row,) = case_rows(name, {})
    text = json.dumps(row, default=bytes.hex)
    if CASES[name].file.endswith("parquet") or "What?" not in text:
        pytest.skip("its rows are no JSON texts")
    marked = json.loads(text.replace("What?", "<video>What?"))
    for dropped in dropped_of(name, marked, root):
        assert dropped.reason == "video"
        assert "<video>" in dropped.detail


@pytest.mark.parametrize("data", [MP4, WEBM], ids=["mp4", "webm"])
@pytest.mark.parametrize("name", CASES)
def test_a_film_in_the_place_of_the_picture(name: str, data: bytes, root: Path) -> None:
    (root / "a.mp4").write_bytes(data)
    (root / "film.jpg").write_bytes(data)
    (row,) = case_rows(name, {})
    image: Any = "a.mp4"
    if CASES[name].file.endswith("parquet"):
        image = {"bytes": data, "path": "a.mp4"}
    elif name == "opa_dpo":
        image = data
    elif name == "ha_dpo":
        # Its rows have names of pictures without an ending.
        image = "film"
    CASES[name].put(row, image)
    for dropped in dropped_of(name, row, root):
        assert dropped.reason == "video"
        assert "video; drop it" in dropped.detail

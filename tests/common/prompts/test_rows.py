"""Rows of the user's own files: what becomes of their columns, and what is wrong with one."""

from __future__ import annotations

import json
import logging
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.data.records_on_disk import fetch
from common.errors import Refused, UserError
from common.prompts.survey import has_facts
from common.records import Dropped, Prompt
from tests.common.prompts.layouts import (
    NUM_PICTURES,
    as_jsonl,
    as_parquet,
    jsonl,
    load,
    plain_rows,
)

BAD_ROWS = {
    "prompt_none": {"image": "pictures/0.png", "text": "What?"},
    "two_columns": {"image": "pictures/0.png", "prompt": "a", "question": "b"},
    "image_none": {"prompt": "What?", "picture": "pictures/0.png"},
    "image_missing": {"prompt": "What?", "image": "pictures/99.png"},
    "path_outside": {"prompt": "What?", "image": "../../secret.png"},
    "image_url": {"prompt": "What?", "image": "https://h/0.png"},
    "image_count": {"prompt": "<image> or <image>?", "image": "pictures/0.png"},
    "prompt_empty": {"prompt": "  ", "image": "pictures/0.png"},
    "role_unknown": {
        "messages": [{"role": "tool", "content": "x"}],
        "image": "pictures/0.png",
    },
    "video": {"prompt": "What?", "video": "v.mp4"},
    "bad_row": "no object",
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_bad_row_is_dropped_and_the_others_stay(folder: Path, reason: str) -> None:
    rows: list[Any] = plain_rows()
    rows.insert(2, BAD_ROWS[reason])
    prompts, dropped = load(jsonl(folder / "rows.jsonl", rows))
    assert [(drop.id, drop.reason) for drop in dropped] == [("prompts/2", reason)]
    ids = [prompt.id for prompt in prompts]
    assert ids == ["prompts/0", "prompts/1", *(f"prompts/{n}" for n in range(3, 7))]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a", "label": 1}, "got the columns text, label; rename its column"),
        ({"prompt": "a"}, "one of image, images, file_name, got the columns prompt"),
        ({"prompt": "a", "question": "b"}, "got prompt and question; keep one"),
    ],
)
def test_a_file_without_any_prompt_is_refused(
    folder: Path, row: Any, said: str
) -> None:
    with pytest.raises(UserError, match=said) as error:
        load(jsonl(folder / "rows.jsonl", [row] * 3))
    assert str(error.value).startswith("data.prompts: expected at least one usable")
    assert "\n" not in str(error.value)


def test_a_picture_that_cannot_be_decoded_is_dropped_when_it_is_used(
    folder: Path,
) -> None:
    (folder / "pictures" / "3.png").write_bytes(b"<html></html>")
    prompts, dropped = load(as_jsonl(folder))
    assert not dropped
    unusable = fetch(prompts, 3)
    assert isinstance(unusable, Dropped)
    assert (unusable.id, unusable.reason) == ("prompts/3", "image_corrupt")
    with pytest.raises(Refused, match="an HTML page"):
        prompts[3]
    assert prompts[4].id == "prompts/4"


def test_columns_of_every_type(folder: Path) -> None:
    rows = [
        {**plain_rows()[0], "answer": 3},
        {**plain_rows()[1], "answer": [0, 0, 4, 4]},
        {**plain_rows()[2], "answer": None, "label": None, "boxes": float("nan")},
        {**plain_rows()[3], "answer": [{"role": "assistant", "content": "A cat."}]},
        {**plain_rows()[4], "answer": True, "id": "cat-4", "boxes": {"a": [None]}},
    ]
    prompts, dropped = load(jsonl(folder / "rows.jsonl", rows))
    assert not dropped
    assert prompts[0].reference == "3"
    assert prompts[1].reference is None
    assert prompts[1].truth == {
        "answer": [0, 0, 4, 4],
        "label": 1,
        "boxes": [[0.5, 1]],
    }
    assert (prompts[2].reference, prompts[2].truth) == (None, {"boxes": None})
    assert prompts[3].reference == "A cat."
    assert prompts[4].id == "prompts/4:cat-4"
    assert prompts[4].truth == {
        "answer": True,
        "label": 4,
        "id": "cat-4",
        "boxes": {"a": [None]},
    }


def test_an_id_alone_is_nothing_to_judge_by() -> None:
    """A run whose judge needs facts is refused at its start, and not when its first groups are dropped."""
    for truth, is_enough in ((None, False), ({"id": 7}, False), ({"label": 1}, True)):
        assert has_facts(Prompt("p", (), (), truth=truth)) == is_enough


def test_types_of_parquet_become_those_of_json(folder: Path) -> None:
    rows = [
        {**plain_rows()[0], "day": date(2026, 11, 25), "mask": {"bytes": b"\0"}},
        {**plain_rows()[1], "day": None, "mask": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    prompts, _ = load(folder / "rows.parquet")
    assert prompts[0].truth is not None
    assert prompts[0].truth["day"] == "2026-11-25"
    assert "mask" not in prompts[0].truth
    json.dumps(prompts[0].truth)


def test_paths_that_hold_no_prompts(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.prompts: .*nowhere, which is not"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"metadata.jsonl beside the pictures"):
        load(folder / "pictures")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"a folder of .*\.csv files, got none"):
        load(tmp_path / "empty")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="at least one usable prompt, got none"):
        load(tmp_path / "empty.jsonl")
    broken = as_parquet(folder)
    broken.write_bytes(broken.read_bytes()[:-9])
    with pytest.raises(UserError, match="expected a whole file"):
        load(broken)
    half = as_jsonl(folder)
    half.write_text(half.read_text()[:-20])
    with pytest.raises(UserError, match="breaks off in line 6"):
        load(half)


def test_files_of_another_kind_are_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    as_jsonl(folder)
    as_parquet(folder)
    with caplog.at_level(logging.WARNING, "sightline"):
        prompts, _ = load(folder)
    assert len(prompts) == NUM_PICTURES
    assert "not reading 1 files" in caplog.text
    assert "such as rows.jsonl" in caplog.text

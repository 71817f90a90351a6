"""Prompts of the user's own files: every layout gives the same prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from common.config.data import Data, PromptFile
from common.data.datasets import IMAGES, PROMPTS, write_prompts
from common.data.images import ImageStore, read_bytes
from common.data.prompt_sources import load_split
from common.data.records_on_disk import RecordsOnDisk
from common.errors import UserError
from common.records import Message, Part
from tests.common.prompts.layouts import (
    LAYOUTS,
    NUM_PICTURES,
    QUESTION,
    as_image_folder_with_csv,
    as_jsonl,
    as_parquet,
    jsonl,
    load,
    picture,
    plain_rows,
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_prompts(
    folder: Path, layout: Callable[[Path], Path]
) -> None:
    prompts, dropped = load(layout(folder))
    assert not dropped
    assert len(prompts) == NUM_PICTURES
    # From the last to the first: any can be read alone.
    for number in reversed(range(NUM_PICTURES)):
        prompt = prompts[number]
        assert prompt.id == f"prompts/{number}"
        parts = (Part("image"), Part("text", QUESTION))
        assert prompt.messages == (Message("user", parts),)
        assert prompt.reference == f"Number {number}."
        assert prompt.truth == {"label": number, "boxes": [[0.5, number]]}
        assert read_bytes(prompt.images[0]) == picture(number)


def test_a_csv_file_holds_texts(folder: Path) -> None:
    prompts, _ = load(as_image_folder_with_csv(folder))
    assert prompts[3].truth == {"label": "3"}
    assert prompts[3].reference == "Number 3."


def test_pictures_in_files_stay_where_they_are(folder: Path) -> None:
    prompts, _ = load(as_jsonl(folder))
    assert prompts[0].images[0].path == str(folder / "pictures" / "0.png")
    assert not list((folder / "store").glob("*/*"))


def test_a_set_of_ours_is_read_as_it_is(folder: Path) -> None:
    prompts, _ = load(as_jsonl(folder))
    write_prompts(folder / "ours", list(prompts))
    for path in (folder / "ours", folder / "ours" / PROMPTS):
        again, dropped = load(path)
        assert not dropped
        assert [prompt.id for prompt in again] == [prompt.id for prompt in prompts]
        assert again[2].truth == prompts[2].truth
        assert Path(again[2].images[0].path).is_relative_to(folder / "ours" / IMAGES)


def test_another_root_for_pictures(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = jsonl(elsewhere / "rows.jsonl", plain_rows())
    with pytest.raises(UserError, match=r"image_missing.*expected a file below"):
        load(path)
    prompts, _ = load(path, images=str(folder))
    assert len(prompts) == NUM_PICTURES


def test_splits_by_the_names_of_files(folder: Path) -> None:
    rows = plain_rows()
    for row in rows:
        row["image"] = f"../{row['image']}"
    jsonl(folder / "train.jsonl", plain_rows()[:4])
    jsonl(folder / "validation.jsonl", plain_rows()[4:])
    both = {"validation": str(folder)}
    assert len(load(folder, **both)[0]) == 4
    assert len(load(folder, "validation", **both)[0]) == 2
    with pytest.raises(UserError, match="of the split test, got train, validation"):
        load(folder, "test", test=str(folder))


def test_only_so_many_rows(folder: Path) -> None:
    for layout in (as_jsonl, as_parquet):
        source = PromptFile(path=str(layout(folder)), rows=4)
        data = Data(prompts=source)
        assert len(load_split(data, "train", ImageStore(folder / "s"), [])) == 4


def test_a_slice_of_prompts_on_disk(folder: Path) -> None:
    prompts, _ = load(as_jsonl(folder))
    assert isinstance(prompts, RecordsOnDisk)
    assert [prompt.id for prompt in prompts[1:3]] == ["prompts/1", "prompts/2"]

"""Prompts of the user's own files: every layout gives the same prompts, and what is wrong with a row is said."""

from __future__ import annotations

import base64
import csv
import io
import json
import logging
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.config.data import Data, HeldOut, PromptFile
from common.data.datasets import IMAGES, PROMPTS, write_prompts
from common.data.images import ImageStore, read_bytes
from common.data.prompt_sources import Split, load_split
from common.data.records_on_disk import RecordsOnDisk, fetch
from common.errors import Refused, UserError
from common.prompts.survey import has_facts
from common.records import Dropped, Message, Part, Prompt

NUM_PICTURES = 6
QUESTION = "What is this?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of pictures."""
    target = tmp_path / "data"
    (target / "pictures").mkdir(parents=True)
    for number in range(NUM_PICTURES):
        (target / "pictures" / f"{number}.png").write_bytes(picture(number))
    return target


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 2 * number, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def plain_rows() -> list[dict[str, Any]]:
    rows = []
    for number in range(NUM_PICTURES):
        row = {
            "image": f"pictures/{number}.png",
            "prompt": QUESTION,
            "answer": f"Number {number}.",
            "label": number,
            "boxes": [[0.5, number]],
        }
        rows.append(row)
    return rows


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(
    path: Path | str, split: Split = "train", **settings: Any
) -> tuple[Sequence[Prompt], list[Dropped]]:
    """The prompts of a path, in a store beside it."""
    dropped: list[Dropped] = []
    data = Data.model_validate({"prompts": str(path), **settings})
    store = ImageStore(Path(path).parent / "store")
    return load_split(data, split, store, dropped), dropped


def with_bytes(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    changed = []
    for row in rows:
        data = (folder / row["image"]).read_bytes()
        changed.append({**row, "image": {"bytes": data, "path": None}})
    return changed


def as_jsonl(folder: Path) -> Path:
    return jsonl(folder / "rows.jsonl", plain_rows())


def as_list(folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(plain_rows()))
    return path


def as_parquet(folder: Path) -> Path:
    table = pa.Table.from_pylist(with_bytes(plain_rows(), folder))
    pq.write_table(table, folder / "rows.parquet", row_group_size=2)
    return folder / "rows.parquet"


def as_saved_folder(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(with_bytes(plain_rows(), folder))
    saved.save_to_disk(folder / "saved")
    return folder / "saved"


def as_image_folder(folder: Path) -> Path:
    rows = []
    for row in plain_rows():
        name = row.pop("image").removeprefix("pictures/")
        rows.append({"file_name": name, **row})
    jsonl(folder / "pictures" / "metadata.jsonl", rows)
    return folder / "pictures"


def as_image_folder_with_csv(folder: Path) -> Path:
    with (folder / "pictures" / "metadata.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "question", "reference", "label", "boxes"])
        for number, row in enumerate(plain_rows()):
            writer.writerow([f"{number}.png", QUESTION, row["answer"], number, ""])
    return folder / "pictures"


def as_chat(folder: Path) -> Path:
    """OpenAI's parts, with the picture as a `data:` URL, and the answer as the last turn."""
    rows = []
    for row in plain_rows():
        data = base64.b64encode((folder / row.pop("image")).read_bytes()).decode()
        url = {"url": f"data:image/png;base64,{data}"}
        parts = [
            {"type": "image_url", "image_url": url},
            {"type": "text", "text": row.pop("prompt")},
        ]
        answer = {"role": "assistant", "content": row.pop("answer")}
        turns = [{"role": "user", "content": parts}, answer]
        rows.append({"messages": turns, **row})
    return jsonl(folder / "chat.jsonl", rows)


def as_conversations(folder: Path) -> Path:
    rows = []
    for row in plain_rows():
        turns = [
            {"from": "human", "value": f"<image>\n{row.pop('prompt')}"},
            {"from": "gpt", "value": row.pop("answer")},
        ]
        rows.append({"images": [row.pop("image")], "conversations": turns, **row})
    return jsonl(folder / "sharegpt.jsonl", rows)


LAYOUTS = (
    as_jsonl,
    as_list,
    as_parquet,
    as_saved_folder,
    as_image_folder,
    as_chat,
    as_conversations,
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


# What is wrong with a row.

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


def test_only_so_many_rows(folder: Path) -> None:
    for layout in (as_jsonl, as_parquet):
        source = PromptFile(path=str(layout(folder)), rows=4)
        data = Data(prompts=source)
        assert len(load_split(data, "train", ImageStore(folder / "s"), [])) == 4


# What is held out.


def many(folder: Path, shares: Sequence[Sequence[int]]) -> Path:
    """A prompt per element, about these pictures."""
    rows = []
    for pictures in shares:
        images = [f"pictures/{number}.png" for number in pictures]
        rows.append({"images": images, "prompt": QUESTION})
    return jsonl(folder / "many.jsonl", rows)


def ids(prompts: Sequence[Prompt]) -> set[str]:
    return {prompt.id for prompt in prompts}


def pictures_of(prompts: Sequence[Prompt]) -> set[str]:
    return {ref.sha256 for prompt in prompts for ref in prompt.images}


def test_a_share_is_held_out_by_picture(folder: Path) -> None:
    path = many(folder, [[number % NUM_PICTURES] for number in range(60)])
    settings = {"validation": 0.2, "test": 10}
    splits = {
        split: load(path, split, **settings)[0]
        for split in ("train", "validation", "test")
    }
    # Ten prompts a picture: 12 prompts are at most one picture.
    assert {split: len(part) for split, part in splits.items()} == {
        "train": 40,
        "validation": 10,
        "test": 10,
    }
    pictures = [pictures_of(part) for part in splits.values()]
    assert sum(map(len, pictures)) == len(set.union(*pictures)) == NUM_PICTURES


def test_the_order_of_rows_does_not_matter_and_the_seed_does(folder: Path) -> None:
    shares = [[number] for number in range(NUM_PICTURES)]
    held = []
    for seed in (0, 0, 1, 2, 3):
        validation = HeldOut(size=2, seed=seed)
        path = many(folder, shares)
        part, _ = load(path, "validation", validation=validation)
        held.append(pictures_of(part))
        shares.reverse()
    assert held[0] == held[1]
    assert any(other != held[0] for other in held[2:])


@settings(max_examples=30, deadline=None)
@given(
    shares=st.lists(
        st.lists(st.integers(0, NUM_PICTURES - 1), min_size=1, max_size=3),
        min_size=4,
        max_size=20,
    ),
    size=st.integers(1, 5),
)
def test_no_picture_is_on_two_sides(
    tmp_path_factory: pytest.TempPathFactory, shares: list[list[int]], size: int
) -> None:
    folder = tmp_path_factory.mktemp("held") / "data"
    (folder / "pictures").mkdir(parents=True)
    for number in range(NUM_PICTURES):
        (folder / "pictures" / f"{number}.png").write_bytes(picture(number))
    path = many(folder, shares)
    try:
        train, _ = load(path, validation=size)
        held, _ = load(path, "validation", validation=size)
    except UserError as error:
        # All are about the same pictures, in the end.
        assert "on one side" in str(error)
        return
    assert len(train) + len(held) == len(shares)
    assert 1 <= len(held) <= size
    assert not pictures_of(train) & pictures_of(held)


def test_two_names_of_one_picture_are_one(folder: Path) -> None:
    for number in range(NUM_PICTURES):
        (folder / "pictures" / f"{number}.png").write_bytes(picture(0))
    path = many(folder, [[number] for number in range(NUM_PICTURES)])
    with pytest.raises(UserError, match=r"data\.validation: expected to hold out 2 of"):
        load(path, validation=2)


def test_more_cannot_be_held_out_than_there_is(folder: Path) -> None:
    path = many(folder, [[0], [1]])
    with pytest.raises(UserError, match="got 2 and 0 left to train on"):
        load(path, validation=5)


def test_an_overlap_is_warned_about(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = many(folder, [[0], [1], [2]])
    held = jsonl(
        folder / "held.jsonl",
        [
            {"image": f"pictures/{number}.png", "prompt": QUESTION}
            for number in (2, 3, 2)
        ],
    )
    with caplog.at_level(logging.WARNING, "sightline"):
        load(train, validation=str(held))
    assert "data.validation: 2 of 3 prompts are about pictures that" in caplog.text
    assert "such as prompts/0" in caplog.text
    caplog.clear()
    # The same of a set of ours, whose pictures have other names.
    prompts, _ = load(held)
    write_prompts(folder / "ours", list(prompts))
    with caplog.at_level(logging.WARNING, "sightline"):
        load(train, test=str(folder / "ours"))
    assert "data.test: 2 of 3 prompts" in caplog.text


def test_without_a_held_out_split_there_is_none(folder: Path) -> None:
    assert load(as_jsonl(folder), "validation")[0] == ()


def test_a_slice_of_prompts_on_disk(folder: Path) -> None:
    prompts, _ = load(as_jsonl(folder))
    assert isinstance(prompts, RecordsOnDisk)
    assert [prompt.id for prompt in prompts[1:3]] == ["prompts/1", "prompts/2"]


def test_only_the_first_of_a_held_out_split(folder: Path) -> None:
    path = as_jsonl(folder)
    store = ImageStore(folder / "store")
    for validation in (str(path), 4):
        data = Data.model_validate({"prompts": str(path), "validation": validation})
        every = load_split(data, "validation", store, [])
        first = load_split(data, "validation", store, [], limit=2)
        assert list(first) == list(every)[:2]

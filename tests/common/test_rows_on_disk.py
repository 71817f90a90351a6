"""Rows and pairs that are read one at a time are those that are read at once."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.data.datasets import IMAGES, PAIRS, read_pairs, write_pairs, write_table
from common.data.images import ImageStore
from common.data.pairs_on_disk import open_pairs
from common.data.records_on_disk import fetch, id_key, usable
from common.data.rows import PAIR_SCHEMA
from common.errors import UserError
from common.reading.picture_keys import END_BYTES, key_of_bytes, key_of_file
from common.reading.row_store import MAX_BATCH_ROWS, RowStore, store_batches, store_json
from common.records import (
    Dropped,
    ImageRef,
    Message,
    Part,
    PreferencePair,
    Prompt,
    Response,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(VALUES, max_size=12))
def test_rows_of_json(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any]
) -> None:
    store = store_json(tmp_path_factory.mktemp("rows") / "rows.arrow", rows)
    assert len(store) == len(rows)
    for number in reversed(range(len(rows))):
        assert store.row(number) == rows[number]


@pytest.mark.parametrize("width", [1, 5000])
@pytest.mark.parametrize("sizes", [[], [1], [300, 1, 255], [7] * 100, [0, 1000]])
def test_batches_of_any_size(tmp_path: Path, sizes: list[int], width: int) -> None:
    total = sum(sizes)
    table = pa.table({"number": range(total), "text": ["x" * width] * total})
    batches = []
    start = 0
    for size in sizes:
        batches += table.slice(start, size).to_batches() or [
            pa.RecordBatch.from_pylist([], schema=table.schema)
        ]
        start += size
    path = tmp_path / "folder" / "rows.arrow"
    store = store_batches(path, table.schema, batches)
    assert len(store) == total
    numbers = list(range(total))
    random.Random(0).shuffle(numbers)
    for number in numbers:
        assert store.row(number)["number"] == number
    # And from disk, by somebody else.
    assert len(RowStore(path)) == total


def test_rows_are_large(tmp_path: Path) -> None:
    """Few of them make a batch, so that reading one reads little."""
    rows = [{"image": bytes(500_000), "number": number} for number in range(7)]
    table = pa.Table.from_pylist(rows)
    store = store_batches(tmp_path / "rows.arrow", table.schema, table.to_batches())
    assert store.row(6)["number"] == 6
    with pa.ipc.open_file(str(tmp_path / "rows.arrow")) as reader:
        assert reader.num_record_batches == 4


def test_a_row_that_python_cannot_hold_is_one_row(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    table = pa.table({"text": texts})
    store = store_batches(tmp_path / "rows.arrow", table.schema, table.to_batches())
    assert isinstance(store.row(1), UnicodeDecodeError)
    assert [store.row(0), store.row(2)] == [{"text": "a"}, {"text": "c"}]


def pair(number: int, image: ImageRef, source: str = "bdhs") -> PreferencePair:
    parts = (Part("image"), Part("text", f"What {number}?"))
    prompt = Prompt(f"p{number // 2}", (Message("user", parts),), (image,), "A cat.")
    rejected = Response(f"A dog {number}.", (1, 2, number))
    return PreferencePair(f"{source}/{number}", prompt, Response("A"), rejected, source)


@pytest.fixture
def image(tmp_path: Path) -> ImageRef:
    return ImageStore(tmp_path / "images").add(Image.new("RGB", (8, 8), "red"))


def test_pairs_one_at_a_time_are_those_at_once(tmp_path: Path, image: ImageRef) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    num_pairs = MAX_BATCH_ROWS + 44
    write_pairs(folders[0], [pair(number, image) for number in range(num_pairs)])
    write_pairs(folders[1], [pair(number, image, "povid") for number in range(5)])
    expected = [*read_pairs(folders[0]), *read_pairs(folders[1])]
    dropped: list[Dropped] = []
    pairs = open_pairs(folders, tmp_path / "rows", dropped)
    assert len(pairs) == num_pairs + 5
    for index in random.Random(0).sample(range(len(pairs)), 60):
        assert pairs[index] == expected[index]
    assert list(usable(pairs, dropped)) == expected
    assert not dropped
    assert pairs.sources == {"bdhs", "povid"}
    keys = [id_key(one.prompt.id) for one in expected]
    assert pairs.prompt_keys.tolist() == keys


def test_an_id_that_is_there_twice_is_dropped_at_the_start(
    tmp_path: Path, image: ImageRef
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        write_pairs(folder, [pair(0, image), pair(len(folder.name), image)])
    dropped: list[Dropped] = []
    pairs = open_pairs(folders, tmp_path / "rows", dropped)
    assert [one.id for one in pairs] == ["bdhs/0", "bdhs/1"]
    assert [(drop.id, drop.reason) for drop in dropped] == [
        ("bdhs/0", "duplicate_id"),
        ("bdhs/1", "duplicate_id"),
    ]
    assert "b: an earlier row has this id" in dropped[0].detail


def test_other_faults_are_their_rows_when_it_is_read(
    tmp_path: Path, image: ImageRef
) -> None:
    folder = tmp_path / "a"
    write_pairs(folder, [pair(number, image) for number in range(4)])
    stored = ImageStore(folder / IMAGES)
    rows = read_rows(folder)
    rows[1]["chosen"] = None
    rows[2]["prompt"]["truth"] = "[]"
    rows[3]["prompt"]["images"][0]["path"] = "../x.png"
    table = pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)
    write_table(folder / PAIRS, table)
    pairs = open_pairs([folder], tmp_path / "rows", [])
    assert len(pairs) == 4
    moved = replace(image, path=str(stored.root / stored_name(stored)))
    assert pairs[0] == pair(0, moved)
    reasons = []
    for index in (1, 2, 3):
        unusable = fetch(pairs, index)
        assert isinstance(unusable, Dropped)
        reasons.append((unusable.id, unusable.reason))
    assert reasons == [
        ("bdhs/1", "bad_row"),
        ("bdhs/2", "bad_truth"),
        ("bdhs/3", "path_outside"),
    ]


def read_rows(folder: Path) -> list[Any]:
    from pyarrow.parquet import read_table

    rows: list[Any] = read_table(folder / PAIRS).to_pylist()
    return rows


def stored_name(store: ImageStore) -> Path:
    (file,) = store.root.glob("*/*")
    return file.relative_to(store.root)


def test_a_set_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a parquet file, got none"):
        open_pairs([tmp_path / "nowhere"], tmp_path / "rows", [])
    (tmp_path / PAIRS).write_bytes(b"PAR1")
    with pytest.raises(UserError, match="expected a parquet file with the columns"):
        open_pairs([tmp_path], tmp_path / "rows", [])


def test_a_part_of_the_pairs(tmp_path: Path, image: ImageRef) -> None:
    write_pairs(tmp_path / "a", [pair(number, image) for number in range(6)])
    pairs = open_pairs([tmp_path / "a"], tmp_path / "rows", [])
    assert [one.id for one in pairs[2:4]] == ["bdhs/2", "bdhs/3"]
    assert pairs.numbers.dtype == np.int64


@pytest.mark.parametrize("size", [0, 1, END_BYTES - 1, END_BYTES, 3 * END_BYTES])
def test_a_picture_has_one_key(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "a.png").write_bytes(data)
    assert key_of_file(tmp_path / "a.png") == key_of_bytes(data)
    assert key_of_bytes(data) != key_of_bytes(data + b"x")
    assert 0 <= key_of_bytes(data) < 2**63

"""JSON files as people have them: every layout gives the same rows, and a fault costs its row or ends the run."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.reading import json_stream
from common.reading.byte_streams import open_stream
from common.reading.json_rows import json_rows
from common.reading.json_stream import JsonText
from common.reading.readers import (
    DataFile,
    file_rows,
    files_of_other_kinds,
    find_files,
)
from common.reading.splits import split_of
from common.records import Dropped


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


ROWS: list[dict[str, Any]] = [
    {"n": number, "text": 'a "quoted" \\ [brace} \u00fc \n line'} for number in range(5)
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
LIST = json.dumps(ROWS)
LAYOUTS: dict[str, bytes] = {
    "list.json": LIST.encode(),
    "list_without_suffix": LIST.encode(),
    "list_named.jsonl": LIST.encode(),
    "indented.json": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "indented.jsonl": json.dumps(ROWS, indent=2).encode(),
    "trailing_comma.json": (LIST[:-1] + ",\n]").encode(),
    "lines.jsonl": LINES.encode(),
    "lines.json": LINES.encode(),
    "no_last_line_feed.jsonl": LINES.rstrip().encode(),
    "commas.jsonl": LINES.replace("\n", ",\n").encode(),
    "mark_and_crlf.jsonl": b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode(),
    "objects_on_lines.json": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
    "wrapped.json": json.dumps({"version": [1, {"data": 2}], "data": ROWS, "more": {}}).encode(),
    "wrapped_and_indented.json": json.dumps({"info": None, "rows": ROWS}, indent=2).encode(),
    "wrapped_in_train.jsonl": json.dumps({"train": ROWS}).encode(),
    "utf16.json": LIST.encode("utf-16"),
    "utf16_big_endian.jsonl": LINES.encode("utf-16-be"),
    "utf16_without_mark.json": LIST.encode("utf-16-le"),
    "utf32.json": LIST.encode("utf-32"),
    "lines.jsonl.gz": gzip.compress(LINES.encode()),
    "gzip_without_suffix.json": gzip.compress(LIST.encode()),
    "list.json.bz2": bz2.compress(LIST.encode()),
    "list.json.zst": zstd(LIST.encode()),
    "zstd_frames.jsonl.zst": b"\x50\x2a\x4d\x18\4\0\0\0size" + zstd(LINES.encode()) + zstd(b"\n"),
    "zstd_without_suffix.json": zstd(b"\xef\xbb\xbf" + LIST.encode()),
    "utf16.jsonl.zst": zstd(LINES.encode("utf-16")),
    "utf16.json.xz": lzma.compress(json.dumps({"data": ROWS}).encode("utf-16")),
}  # fmt: skip


def read(path: Path, keyed: bool = False) -> tuple[list[Any], list[Dropped]]:
    rows: list[Any] = []
    dropped: list[Dropped] = []
    (file,) = find_files(path)
    assert isinstance(file, DataFile)
    for row, position in file_rows(file, keyed):
        assert 0 <= position <= path.stat().st_size
        if isinstance(row, Dropped):
            dropped.append(row)
        else:
            rows.append(row)
    return rows, dropped


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(LAYOUTS[name])
    assert read(tmp_path / name) == (ROWS, [])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_where_chunks_end_does_not_matter(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", size)
    for name in ("indented.json", "wrapped.json", "utf16.json"):
        (tmp_path / name).write_bytes(LAYOUTS[name])
        assert read(tmp_path / name) == (ROWS, [])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('a"\\[]{},:\u00fc', max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"\\]}', max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(VALUES, max_size=5), st.integers(1, 9), st.sampled_from([None, 1]))
def test_elements_are_those_of_the_standard_parser(
    values: list[Any], size: int, indent: int | None
) -> None:
    class Trickle:
        """A stream that gives at most `size` bytes at once, whatever is asked for."""

        def __init__(self, data: bytes) -> None:
            self.data = data

        def read(self, _: int, /) -> bytes:
            piece, self.data = self.data[:size], self.data[size:]
            return piece

        def readline(self, _: int, /) -> bytes:
            raise AssertionError("the parser reads pieces, not lines")

    text = json.dumps(values, indent=indent).encode()
    elements = list(JsonText(Trickle(text), 10_000).items())
    assert [json.loads(element) for element in elements] == values


def test_rows_with_nan_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"n": 0}, {"n": NaN}, {"n": [-Infinity]}]')
    rows, dropped = read(tmp_path / "a.json")
    assert rows[0] == {"n": 0} and math.isnan(rows[1]["n"])
    assert rows[2] == {"n": [-math.inf]} and dropped == []


def test_a_missing_comma_costs_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"n": 0} {"n": 1}\n{"n": 2}, {"n": 3}]')
    assert read(tmp_path / "a.json") == ([{"n": number} for number in range(4)], [])


def test_garbage_between_rows_costs_the_row_behind_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"n": 0} xx {"n": 1}, {"n": 2}]')
    rows, dropped = read(tmp_path / "a.json")
    assert rows == [{"n": 0}, {"n": 2}]
    assert [(drop.id, drop.reason) for drop in dropped] == [("a.json:2", "bad_row")]


@pytest.mark.parametrize("nested", ["[" * 100_000 + "]" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000])  # fmt: skip
def test_a_deeply_nested_row_costs_itself(nested: str, tmp_path: Path) -> None:
    texts = ['{"n": 0}', f'{{"n": {nested}}}', '{"n": 2}']
    for name, content in (("a.jsonl", "\n".join(texts)), ("a.json", f"[{','.join(texts)}]")):  # fmt: skip
        (tmp_path / name).write_text(content)
        rows, dropped = read(tmp_path / name)
        assert rows == [{"n": 0}, {"n": 2}]
        assert [(drop.id, drop.reason) for drop in dropped] == [(f"{name}:2", "bad_row")]  # fmt: skip
        assert "recursion" in dropped[0].detail


def test_a_key_with_two_values_costs_its_row(tmp_path: Path) -> None:
    """Python would take the last one, whichever was meant; the same value twice says nothing else."""
    texts = ['{"n": 0, "n": 1}', '{"n": {"x": 1, "x": 2}}', '{"n": 1, "n": 1}']
    (tmp_path / "a.jsonl").write_text("\n".join(texts))
    rows, dropped = read(tmp_path / "a.jsonl")
    assert rows == [{"n": 1}]
    assert [drop.id for drop in dropped] == ["a.jsonl:1", "a.jsonl:2"]
    assert "two values under 'n'" in dropped[0].detail


@pytest.mark.parametrize("content", ["", "\n\n", "[]", '{"data": []}'])
def test_a_file_without_rows_is_counted(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    rows, (dropped,) = read(tmp_path / "a.json")
    assert rows == [] and (dropped.id, dropped.reason) == ("a.json", "empty_file")


def test_arrow_files_in_both_layouts(tmp_path: Path) -> None:
    """`datasets` writes streams, others files; a name without kind says nothing else."""
    table = pa.Table.from_pylist(ROWS)
    for number, make in enumerate((pa.ipc.new_stream, pa.ipc.new_file)):
        path = tmp_path / f"{number}.arrow"
        with make(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        assert read(path) == (ROWS, [])


def test_a_link_that_leads_nowhere_is_no_lost_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "b.jsonl").symlink_to("../blobs/gone")
    with pytest.raises(UserError, match=r"b\.jsonl: .* leads nowhere"):
        find_files(tmp_path)


def test_hidden_folders_are_those_of_tools(tmp_path: Path) -> None:
    for name in ("a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", ".cache/b.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LINES)
    assert [file.path.name for file in find_files(tmp_path)] == ["a.jsonl"]


FAULTS = ["{nope}", '{"n": }', '{"n": 1 2}', '"n": 1', '{"n": "\\x"}', '{"n": "\udcff"}']  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_within_a_row_costs_that_row(fault: str, tmp_path: Path) -> None:
    text = f'[{{"n": 0}}, {fault}, {{"n": 2}}]'.encode("utf-8", "surrogateescape")
    (tmp_path / "a.json").write_bytes(text)
    rows, dropped = read(tmp_path / "a.json")
    assert rows == [{"n": 0}, {"n": 2}]
    assert [(drop.id, drop.reason) for drop in dropped] == [("a.json:2", "bad_row")]
    assert dropped[0].detail.startswith("row 2: expected one JSON object, got")


BROKEN = {
    "cut.json": LIST.encode()[:200],
    "cut_behind_a_row.json": json.dumps(ROWS[:3])[:-1].encode(),
    "cut_wrapped.json": LAYOUTS["wrapped.json"][:250],
    "cut.jsonl": LINES.encode()[:200],
    "cut.jsonl.gz": gzip.compress(LINES.encode())[:-20],
    "cut.json.xz": lzma.compress(LIST.encode())[:-20],
    "cut.json.zst": zstd(LIST.encode())[:-4],
    "garbage.jsonl.zst": zstd(LINES.encode()) + b"garbage",
    "archive.json": b"PK\x03\x04" + b"\0" * 100,
    "parquet.jsonl": b"PAR1" + b"\n" * 100 + b"PAR1",
    "cut_utf16.json": LIST.encode("utf-16")[:401],
    "brackets.json": b'[{"n": 0}}, {"n": 1}]',
    "two_lists.json": b'[{"n": 0}]\n[{"n": 1}]',
    "pointer.json": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
    "page.parquet": b"<!doctype html><html></html>",
    "pointer.arrow": b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_breaks_off_says_how_many_rows_it_gave(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(BROKEN[name])
    rows, dropped = read(tmp_path / name)
    assert rows == ROWS[: len(rows)] or rows == [{"n": 0}]
    assert [drop.reason for drop in dropped if drop.reason != "bad_row"] == ["bad_file"]
    assert f"; {len(rows)} rows came before that" in dropped[-1].detail
    if name.startswith("pointer"):
        assert "a git-LFS pointer" in dropped[-1].detail
    if name.startswith("page"):
        assert "an HTML page" in dropped[-1].detail


def test_other_splits_within_a_file_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        json.dumps({"test": ROWS[:2], "train": ROWS[2:], "dev": ROWS[:1]})
    )
    rows, dropped = read(tmp_path / "a.json")
    assert rows == ROWS[2:]
    assert [(drop.id, drop.reason) for drop in dropped] == [
        ("a.json:test", "other_split"),
        ("a.json:dev", "other_split"),
    ]
    assert "got 2 under 'test'" in dropped[0].detail


def test_lists_in_the_rows_of_lines_are_no_rows(tmp_path: Path) -> None:
    """A field of a row may have any name."""
    rows = [{"data": [{"x": 1}], "test": [{"y": 2}]}] * 2
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "a.jsonl") == (rows, [])


def test_keyed_objects_in_their_layouts(tmp_path: Path) -> None:
    expected = [{"n": 1, "image_id": "a"}, {"n": 2, "image_id": "b"}]
    keyed = {"a": {"n": 1}, "b": {"n": 2}}
    for text in (
        json.dumps(keyed),
        json.dumps(keyed, indent=2),
        json.dumps({"data": expected}),
    ):
        (tmp_path / "a.json").write_text(text)
        assert read(tmp_path / "a.json", keyed=True) == (expected, [])  # fmt: skip


def test_a_stream_is_closed_and_its_start_unread(tmp_path: Path) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf[1]"))
    with open_stream(tmp_path / "a.json.gz") as stream:
        assert stream.text.read(10) == b"[1]"
    assert stream.file.closed


def test_a_long_element_ends_the_file_at_its_limit(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"n": 0}, {"n": "' + "x" * 200_000 + '"}]')
    with pytest.raises(ValueError, match="more than 70,000 bytes"):
        list(json_rows(tmp_path / "a.json", False, 70_000))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("val/data-00000-of-00001.arrow", "validation"),
        ("default/train/0000.parquet", "train"),
        ("llava_dev.jsonl.gz", "validation"),
        ("Train.json", "train"),
        ("coco_val2014.json", "validation"),
        ("train_test.json", None),
        ("training_data.json", "train"),
        ("RLAIF-V-Dataset_000.parquet", None),
        ("desc_data.json", None),
        ("latest.json", None),
        ("constrained/a.json", None),
    ],
)
def test_splits_as_names_of_files_say_them(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_data_behind_links_is_read_once(tmp_path: Path) -> None:
    """A linked folder, a second link to it, a link in a circle, and files that are links (a hub cache)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "blob").write_text(LINES)
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").symlink_to(disk / "blob")
    (disk / "b.jsonl").write_text(LINES)
    (data / "more").symlink_to(disk)
    (data / "twice").symlink_to(disk)
    (data / "circle").symlink_to(data)
    names = [file.path.relative_to(data).as_posix() for file in find_files(data)]
    assert names == ["a.jsonl", "more/b.jsonl"]


def test_files_of_other_kinds_are_known(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.jsonl.gz", "c.json", "dataset_info.json"):
        (tmp_path / name).touch()
    assert [file.path.name for file in find_files(tmp_path)] == ["a.parquet"]
    assert [path.name for path in files_of_other_kinds(tmp_path)] == ["b.jsonl.gz", "c.json"]  # fmt: skip
    with pytest.raises(UserError, match="convert it"):
        (tmp_path / "d.xlsx").write_text("a,b\n")
        find_files(tmp_path / "d.xlsx")

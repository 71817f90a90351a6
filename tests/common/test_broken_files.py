"""Files that are damaged or break off: what came before stays, and a value that cannot be held costs its row."""

from __future__ import annotations

import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.reading import readers
from common.reading.readers import DataFile, find_files, read_rows
from common.records import Dropped
from tests.common.importer_cases import (
    write,
)


def test_broken_files_keep_what_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [{"n": number} for number in range(200)]
    text = json.dumps(good)
    (tmp_path / "a.json").write_text(text[: text.index('"n": 150') + 3])
    (tmp_path / "b.jsonl").write_bytes(
        b'\xef\xbb\xbf{"n": 0}\n\n{"n": \n{"n": "\xff"}\n'
        + b"[" * 100_000
        + b'\n{"n": 1}'
    )
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no PAR1")
    pq.write_table(pa.table({"abcd": [1]}), tmp_path / "g.parquet", store_schema=False)
    (tmp_path / "g.parquet").write_bytes(
        (tmp_path / "g.parquet").read_bytes().replace(b"abcd", b"abc\xff")
    )
    (tmp_path / "d.json").write_text("[" * 200_000)
    (tmp_path / "e.json").write_text('[{"n": 5}] tail')
    (tmp_path / "h.json").write_text(
        json.dumps([{"n": 1}, {"n": "x" * 200_000}, {"n": 3}])
    )
    (tmp_path / "i.json").write_text(
        json.dumps([{"n": number} for number in range(20_000)])
    )
    (tmp_path / "f.jsonl").write_text('{"n": "' + "x" * 3000 + '"}\n{"n": 7}\n')
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1000)

    def read(name: str) -> tuple[list[Any], list[str]]:
        rows = [row for row, _ in read_rows([DataFile(tmp_path / name)])]
        return [row["n"] for row in rows if isinstance(row, dict)], [
            r.reason for r in rows if isinstance(r, Dropped)
        ]

    assert read("a.json") == (list(range(150)), ["bad_file"])
    assert read("c.parquet") == ([], ["bad_file"]) and read("d.json") == (
        [],
        ["bad_file"],
    )
    assert read("g.parquet") == ([], ["bad_file"])
    assert read("e.json") == ([5], ["bad_file"]) and read("f.jsonl") == (
        [7],
        ["bad_row"],
    )
    assert read("h.json") == ([1], ["bad_file"]) and read("i.json") == (
        list(range(20_000)),
        [],
    )
    monkeypatch.undo()
    assert read("b.jsonl") == ([0, 1], ["bad_row"] * 3)


@pytest.mark.parametrize(
    ("number", "kept"),
    [
        ("9" * 5000, False),
        ("1e99999999999999999999", True),
        ("NaN", True),
        ("-Infinity", True),
        ("nan", False),
    ],
)
@pytest.mark.parametrize(
    "layout",
    [
        '[{"n": 0}, %s, {"n": 2}]',
        '{"data": [{"n": 0}, %s, {"n": 2}]}',
        '{"n": 0}\n%s\n{"n": 2}\n',
    ],
)
def test_a_number_costs_its_row_alone(
    tmp_path: Path, number: str, kept: bool, layout: str
) -> None:
    """Python's json takes NaN and numbers beyond a float, and refuses 5,000 digits and words that it does not know."""
    (tmp_path / "a.json").write_text(layout % f'{{"n": {number}}}')
    first, middle, last = (row for row, _ in read_rows([DataFile(tmp_path / "a.json")]))
    assert (first, last) == ({"n": 0}, {"n": 2})
    if kept:
        assert repr(middle["n"]) == repr(float(number))
    else:
        assert (middle.id, middle.reason) == ("a.json:2", "bad_row")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_value_that_python_cannot_hold_costs_its_row_alone(
    tmp_path: Path, suffix: str
) -> None:
    offsets = pa.array(range(101), pa.int32()).buffers()[1]
    text = pa.Array.from_buffers(
        pa.string(), 100, [None, offsets, pa.py_buffer(b"a" * 70 + b"\xff" + b"a" * 29)]
    )
    times = pa.array(
        [2**62 if number == 80 else number for number in range(100)], pa.timestamp("us")
    )
    table = pa.table({"n": range(100), "text": text, "nobody needs": times})
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    rows = [row for row, _ in read_rows([DataFile(path)])]
    assert [row["n"] for row in rows if isinstance(row, dict)] == [
        n for n in range(100) if n not in (70, 80)
    ]
    dropped = [(row.id, row.reason) for row in rows if isinstance(row, Dropped)]
    assert dropped == [(f"{path.name}:71", "bad_row"), (f"{path.name}:81", "bad_row")]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_file_cut_anywhere_gives_its_whole_rows(data: st.DataObject) -> None:
    rows = data.draw(
        st.lists(
            st.dictionaries(st.text(max_size=3), st.text(max_size=5) | st.integers()),
            max_size=5,
        )
    )
    for suffix in (".json", ".jsonl"):
        with tempfile.TemporaryDirectory() as name:
            path = write(Path(name) / f"rows{suffix}", rows)
            whole = path.read_bytes()
            path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
            read = [row for row, _ in read_rows([DataFile(path)])]
            kept = [row for row in read if not isinstance(row, Dropped)]
            assert kept == rows[: len(kept)]
            assert len(kept) == len(rows) or len(read) - len(kept) <= 1


def test_a_folder_without_data_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UserError, match="got none"):
        find_files(tmp_path)
    (tmp_path / "set.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match="unpack"):
        find_files(tmp_path / "set.pkl")

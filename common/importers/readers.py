"""Rows of data files, streamed: JSON lists by ijson, JSON lines, parquet shards, `save_to_disk` folders.

A file that breaks off gives all its rows up to there, then one Dropped `bad_file`; a broken line, or a row of values
that Python cannot hold, is one `bad_row`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import pyarrow as pa
import pyarrow.parquet as pq
from ijson.common import ObjectBuilder

from common.errors import UserError
from common.records import Dropped
from common.rows import python_rows

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Of a JSON line, or of an element of a JSON list."""
MAX_DEPTH = 64
BATCH_ROWS = 64

_KINDS = (".arrow", ".parquet", ".jsonl", ".json")
_NO_DATA = {
    "state.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "spec.json",
    "stats.json",
}


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of a set; `extra` is added to each of its rows."""

    path: Path
    extra: Mapping[str, str] = field(default_factory=dict)


def find_files(path: Path) -> Sequence[DataFile | Dropped]:
    """The file itself, or all data files below a folder, by name; of several kinds the first of `_KINDS` counts.

    Raises:
        UserError: there is no such file or folder, or it holds no data in these kinds.
    """
    if path.is_file():
        if path.suffix not in _KINDS and _first_byte(path) not in (b"[", b"{"):
            raise UserError(
                f"{path}: expected one of {', '.join(_KINDS)}, got another kind of file; unpack it first"
            )
        return [DataFile(path)]
    found = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix in _KINDS
        and file.name not in _NO_DATA
        and not file.name.startswith((".", "cache-"))
    ]
    for kind in _KINDS:
        if files := [
            DataFile(file) for file in found if file.suffix == kind and file.is_file()
        ]:
            return files
    raise UserError(
        f"{path}: expected a file or a folder of {', '.join(_KINDS)} files, got none; check PATH"
    )


def read_rows(
    files: Sequence[DataFile | Dropped], keyed: bool = False
) -> Iterator[tuple[Any, int]]:
    """Rows (whatever a file holds; people promise dicts) or Dropped, each with the bytes read so far over all files.

    With `keyed`, a JSON object of `{image_id: row}` gives rows with their `image_id`.
    """
    before = 0
    for file in files:
        if isinstance(file, Dropped):
            yield file, before
            continue
        size = file.path.stat().st_size
        try:
            for row, position in _reader(file.path, keyed)(file.path):
                if file.extra and isinstance(row, dict):
                    row = {**row, **file.extra}
                yield row, before + position
        except (OSError, ijson.JSONError, pa.ArrowException, ValueError) as error:
            what = str(error).strip().partition("\n")[0]
            message = f"{file.path.name}: expected a whole file, got: {what}; the rest of it is lost, fetch it again"
            yield Dropped(file.path.name, "bad_file", message), before + size
        before += size


def _reader(path: Path, keyed: bool) -> Callable[[Path], Iterator[tuple[Any, int]]]:
    if path.suffix in (".parquet", ".arrow"):
        return _parquet_rows if path.suffix == ".parquet" else _arrow_rows
    is_document = path.suffix != ".jsonl" and (keyed or _first_byte(path) == b"[")
    return _json_items if is_document else _json_lines


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _json_items(path: Path) -> Iterator[tuple[Any, int]]:
    """Elements of the list, or values of the object, that a JSON file consists of.

    Events rather than `ijson.items`, whose path strings grow with the square of the nesting of a hostile file. Floats
    as JSON lines have them: where Python refuses a number, ijson's own Decimals and long integers crash its C code.
    """
    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        depth, key, builder = 0, None, ObjectBuilder()
        elements = _Elements(file)
        for event, value in ijson.basic_parse(elements, use_float=True):
            if event in ("start_map", "start_array"):
                depth += 1
                if depth == 1:
                    continue
                if depth > MAX_DEPTH:
                    raise ijson.JSONError(f"values nested deeper than {MAX_DEPTH}")
            elif event in ("end_map", "end_array"):
                depth -= 1
                if depth == 0:
                    continue
            elif event == "map_key" and depth == 1:
                key = value
                continue
            builder.event(event, value)
            if depth == 1:
                row, builder = builder.value, ObjectBuilder()
                if key is not None and isinstance(row, dict):
                    row = {**row, "image_id": key}
                elements.num_bytes = 0
                yield row, file.tell()


@dataclass(slots=True)
class _Elements:
    """The file of a JSON list, `num_bytes` of it read since the last whole element: about `MAX_LINE_BYTES` at most."""

    file: BinaryIO
    num_bytes: int = 0

    def read(self, size: int) -> bytes:
        if self.num_bytes > MAX_LINE_BYTES:
            raise ijson.JSONError(f"an element of more than {MAX_LINE_BYTES:,} bytes")
        found = self.file.read(size)
        self.num_bytes += len(found)
        return found


def _json_lines(path: Path) -> Iterator[tuple[Any, int]]:
    position = number = 0
    with path.open("rb") as file:
        for line, too_long in _lines(file):
            position += len(line)
            number += 1
            if not line.strip():
                continue
            try:
                if too_long:
                    raise ValueError(f"more than {MAX_LINE_BYTES:,} bytes")
                yield json.loads(line), position
            except (ValueError, RecursionError) as error:
                message = f"line {number}: expected one JSON object, got: {error}; repair the line"
                yield Dropped(f"{path.name}:{number}", "bad_row", message), position


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Lines, and whether one was cut because it is longer than `MAX_LINE_BYTES`; its rest is skipped."""
    while line := file.readline(MAX_LINE_BYTES):
        too_long = len(line) == MAX_LINE_BYTES and not line.endswith(b"\n")
        rest = line
        while too_long and rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
        yield line, too_long


def _parquet_rows(path: Path) -> Iterator[tuple[Any, int]]:
    size = path.stat().st_size
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        for number, row in _numbered(file.iter_batches(BATCH_ROWS), path):
            yield row, size * number // file.metadata.num_rows


def _arrow_rows(path: Path) -> Iterator[tuple[Any, int]]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
        slices = (
            batch.slice(start, BATCH_ROWS)
            for batch in batches
            for start in range(0, len(batch), BATCH_ROWS)
        )
        for _, row in _numbered(slices, path):
            yield row, file.tell()


def _numbered(
    batches: Iterable[pa.RecordBatch], path: Path
) -> Iterator[tuple[int, Any]]:
    """Rows with their numbers, from 1; one that cannot be had is Dropped without those beside it."""
    for number, row in enumerate(chain.from_iterable(map(python_rows, batches)), 1):
        if isinstance(row, Exception):
            message = f"row {number}: expected values that Python can hold, got: {row}; repair the row"
            row = Dropped(f"{path.name}:{number}", "bad_row", message)
        yield number, row

"""Streams the rows of data files: JSON lists (by ijson), JSON lines, parquet shards, `save_to_disk` folders.

A file that breaks off gives all rows up to there, then one Dropped `bad_file`. A broken line, or a row of values that
Python cannot hold, is one Dropped `bad_row`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import pyarrow as pa
import pyarrow.parquet as pq
from ijson.common import ObjectBuilder

from common.data.rows import python_rows
from common.errors import UserError
from common.records import Dropped

MAX_LINE_BYTES = 64 * 1024 * 1024
"""The longest JSON line, or element of a JSON list, that is read."""
MAX_DEPTH = 64
"""The deepest nesting of a JSON list's elements that is read."""
BATCH_ROWS = 64
"""Rows of a parquet or arrow file that are in memory as Python objects."""

_KINDS = (".arrow", ".parquet", ".jsonl", ".json")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_METADATA = {
    "state.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "spec.json",
    "stats.json",
}


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of a data set; the fields of `extra` are added to each of its rows."""

    path: Path
    extra: Mapping[str, str] = field(default_factory=dict)


def find_files(path: Path) -> Sequence[DataFile | Dropped]:
    """The file itself, or the data files below a folder, sorted by name.

    If a folder holds several kinds of files, only those of the first kind in `_KINDS` are taken.

    Raises:
        UserError: there is no such file or folder, or it holds no data of these kinds.
    """
    kinds = ", ".join(_KINDS)
    if path.is_file():
        # Some sets name their JSON without a suffix.
        if path.suffix not in _KINDS and _first_byte(path) not in (b"[", b"{"):
            raise UserError(
                f"{path}: expected one of {kinds}, got another kind of file; unpack it first"
            )
        return [DataFile(path)]
    files_of_kind: dict[str, list[DataFile]] = {kind: [] for kind in _KINDS}
    for file in sorted(path.rglob("*")):
        # `datasets` keeps its caches beside the data, as cache-….arrow.
        ignored = file.name in _METADATA or file.name.startswith((".", "cache-"))
        if file.suffix in _KINDS and not ignored and file.is_file():
            files_of_kind[file.suffix].append(DataFile(file))
    for files in files_of_kind.values():
        if files:
            return files
    raise UserError(
        f"{path}: expected a file or a folder of {kinds} files, got none; check PATH"
    )


def read_rows(
    files: Sequence[DataFile | Dropped],
    keyed: bool = False,
) -> Iterator[tuple[Any, int]]:
    """(row or Dropped, bytes read so far over all files) for every row.

    A row is whatever the file holds there; it should be a dict, but nothing has checked that yet.

    Args:
        keyed: whether a JSON object is `{image_id: row}`; its rows get their `image_id` as a field.
    """
    bytes_before = 0
    for file in files:
        if isinstance(file, Dropped):
            yield file, bytes_before
            continue
        size = file.path.stat().st_size
        try:
            read = _reader(file.path, keyed)
            for row, position in read(file.path):
                if file.extra and isinstance(row, dict):
                    row = {**row, **file.extra}
                yield row, bytes_before + position
        except (OSError, ijson.JSONError, pa.ArrowException, ValueError) as error:
            what = str(error).strip().partition("\n")[0]
            message = f"{file.path.name}: expected a whole file, got: {what}; the rest of it is lost, fetch it again"
            yield Dropped(file.path.name, "bad_file", message), bytes_before + size
        bytes_before += size


def _reader(path: Path, keyed: bool) -> Callable[[Path], Iterator[tuple[Any, int]]]:
    if path.suffix == ".parquet":
        return _parquet_rows
    if path.suffix == ".arrow":
        return _arrow_rows
    if path.suffix == ".jsonl":
        return _json_lines
    # A .json file may also hold JSON lines.
    if keyed or _first_byte(path) == b"[":
        return _json_items
    return _json_lines


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(4096)
    return start.removeprefix(_BYTE_ORDER_MARK).lstrip()[:1]


def _json_items(path: Path) -> Iterator[tuple[Any, int]]:
    """The elements of the list, or the values of the object, that a JSON file consists of.

    Reads ijson's events rather than `ijson.items`, whose path strings grow with the square of the nesting of a hostile
    file. Numbers become floats as in JSON lines: ijson's own Decimals and long integers crash its C code where Python
    refuses a number.
    """
    with path.open("rb") as file:
        if file.read(3) != _BYTE_ORDER_MARK:
            file.seek(0)
        elements = _Elements(file)
        depth = 0
        key = None
        builder = ObjectBuilder()
        for event, value in ijson.basic_parse(elements, use_float=True):
            # Depth 0 is outside the list or object, depth 1 between its elements.
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
                row = builder.value
                if key is not None and isinstance(row, dict):
                    row = {**row, "image_id": key}
                builder = ObjectBuilder()
                elements.num_bytes = 0
                yield row, file.tell()


@dataclass(slots=True)
class _Elements:
    """The file of a JSON list, read by ijson; refuses an element of more than about `MAX_LINE_BYTES`.

    `num_bytes` counts what was read since the last whole element.
    """

    file: BinaryIO
    num_bytes: int = 0

    def read(self, size: int) -> bytes:
        if self.num_bytes > MAX_LINE_BYTES:
            raise ijson.JSONError(f"an element of more than {MAX_LINE_BYTES:,} bytes")
        data = self.file.read(size)
        self.num_bytes += len(data)
        return data


def _json_lines(path: Path) -> Iterator[tuple[Any, int]]:
    position = 0
    with path.open("rb") as file:
        for number, (line, too_long) in enumerate(_lines(file), start=1):
            position += len(line)
            if not line.strip():
                continue
            try:
                if too_long:
                    raise ValueError(f"more than {MAX_LINE_BYTES:,} bytes")
                yield json.loads(line), position
            except (ValueError, RecursionError) as error:
                message = f"line {number}: expected one JSON object, got: {error}; repair the line"
                dropped = Dropped(f"{path.name}:{number}", "bad_row", message)
                yield dropped, position


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """(line, whether it was longer than `MAX_LINE_BYTES` and is cut there) for every line."""
    while line := file.readline(MAX_LINE_BYTES):
        too_long = len(line) == MAX_LINE_BYTES and not line.endswith(b"\n")
        rest = line
        while too_long and rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
        yield line, too_long


def _parquet_rows(path: Path) -> Iterator[tuple[Any, int]]:
    size = path.stat().st_size
    # Pre-buffering would read a whole row group, however large, into memory.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        num_rows = file.metadata.num_rows
        for number, row in _numbered(file.iter_batches(BATCH_ROWS), path):
            yield row, size * number // num_rows


def _arrow_rows(path: Path) -> Iterator[tuple[Any, int]]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
        for _, row in _numbered(_sliced(batches), path):
            yield row, file.tell()


def _sliced(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches in pieces of at most `BATCH_ROWS` rows."""
    for batch in batches:
        for start in range(0, len(batch), BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _numbered(
    batches: Iterable[pa.RecordBatch],
    path: Path,
) -> Iterator[tuple[int, Any]]:
    """(number from 1, row) for every row; a row that Python cannot hold is Dropped, those beside it stay."""
    number = 0
    for batch in batches:
        for row in python_rows(batch):
            number += 1
            if isinstance(row, Exception):
                message = f"row {number}: expected values that Python can hold, got: {row}; repair the row"
                row = Dropped(f"{path.name}:{number}", "bad_row", message)
            yield number, row

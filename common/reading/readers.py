"""Streams the rows of data files: JSON lists and lines, CSV, parquet shards, `save_to_disk` folders; plain or packed.

A row that cannot be read is one Dropped `bad_row`, and those beside it stay. A file that breaks off gives its rows up
to there, then one Dropped `bad_file`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.data.file_kinds import ARROW, HTML, LFS_POINTER, is_binary, kind_of
from common.data.rows import python_rows
from common.errors import UserError
from common.reading.byte_streams import COMPRESSIONS, UNPACKING_ERRORS, read_head
from common.reading.csv_rows import csv_rows
from common.reading.json_rows import json_rows
from common.reading.json_stream import BrokenText
from common.reading.splits import split_of
from common.records import Dropped

MAX_LINE_BYTES = 64 * 1024 * 1024
"""The longest JSON line, or element of a JSON list, that is read."""
BATCH_ROWS = 64
"""Rows of a parquet or arrow file that are in memory as Python objects."""
BAD_FILE = "bad_file"
"""The reason of what is lost behind the place where a file breaks off."""
EMPTY_FILE = "empty_file"
"""The reason that stands for a file without rows. Beside others it may be right, but it may be a lost download too."""

_KINDS = (".arrow", ".parquet", ".jsonl", ".json", ".csv")
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
    """One file of a data set; the fields of `extra` are added to each of its rows.

    `split` is the part of the data set that its name stands for, None when it says nothing.
    """

    path: Path
    extra: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None


def find_files(path: Path) -> Sequence[DataFile | Dropped]:
    """The file itself, or the data files below a folder, sorted by name.

    If a folder holds several kinds of files, only those of the first kind in `_KINDS` are taken; `files_of_other_kinds`
    has the rest.

    Raises:
        UserError: there is no such file or folder, or it holds no data of these kinds.
    """
    kinds = ", ".join(_KINDS)
    if path.is_file():
        # Some sets name their JSON without a suffix.
        is_json = read_head(path, 4096).lstrip()[:1] in (b"[", b"{")
        if _kind(path) is None and not is_json:
            raise UserError(
                f"{path}: expected one of {kinds}, got another kind of file; unpack or convert it first"
            )
        return [DataFile(path, split=split_of(path.name))]
    for files in _files_of_kinds(path).values():
        if files:
            names = [file.relative_to(path).as_posix() for file in files]
            splits = map(split_of, names)
            return [
                DataFile(file, split=split)
                for file, split in zip(files, splits, strict=True)
            ]
    raise UserError(
        f"{path}: expected a file or a folder of {kinds} files, got none; check PATH"
    )


def files_of_other_kinds(path: Path) -> list[Path]:
    """The data files below a folder that `find_files` leaves out, because it holds others of an earlier kind."""
    if path.is_file():
        return []
    with_files = [files for files in _files_of_kinds(path).values() if files]
    return [file for files in with_files[1:] for file in files]


def _files_of_kinds(path: Path) -> dict[str, list[Path]]:
    """The data files below a folder by their kind, in the order of `_KINDS`, sorted by name."""
    files_of_kind: dict[str, list[Path]] = {kind: [] for kind in _KINDS}
    for file in sorted(_walk(path)):
        # `datasets` keeps its caches beside the data, as cache-….arrow.
        ignored = file.name in _METADATA or file.name.startswith((".", "cache-"))
        kind = _kind(file)
        if kind is None or ignored:
            continue
        if file.is_symlink() and not file.exists():
            raise UserError(
                f"{file}: expected a data file, got a link that leads nowhere; fetch the data set again"
            )
        if file.is_file():
            files_of_kind[kind].append(file)
    return files_of_kind


def _walk(path: Path) -> Iterator[Path]:
    """All files below a folder, behind links too: they are the user's own."""
    visited: set[Path] = set()
    for folder, subfolders, names in os.walk(path, followlinks=True):
        real_folder = Path(folder).resolve()
        if (
            real_folder in visited
        ):  # links in a circle, or a second link to the same data
            subfolders.clear()
            continue
        visited.add(real_folder)
        # Hidden folders are those of tools: .git, .ipynb_checkpoints. Without the order, it would depend on the file
        # system which of two links is followed.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in names)


def _kind(path: Path) -> str | None:
    """Which of `_KINDS` a file is by its name."""
    name = path.name.lower()
    for ending in COMPRESSIONS:
        if name.endswith(ending):
            # Parquet and Arrow files have a compression of their own.
            unpacked = Path(name.removesuffix(ending)).suffix
            return unpacked if unpacked in (".jsonl", ".json") else None
    return path.suffix if path.suffix in _KINDS else None


def read_rows(
    files: Sequence[DataFile | Dropped],
    keyed: bool = False,
) -> Iterator[tuple[Any, int]]:
    """(row or Dropped, bytes read so far over all files) for every row; see `file_rows`."""
    bytes_before = 0
    for file in files:
        if isinstance(file, Dropped):
            yield file, bytes_before
            continue
        for row, position in file_rows(file, keyed):
            yield row, bytes_before + position
        bytes_before += file.path.stat().st_size


def file_rows(file: DataFile, keyed: bool = False) -> Iterator[tuple[Any, int]]:
    """(row or Dropped, bytes read so far) for every row of a file.

    A row is whatever the file holds there; it should be a dict, but nothing has checked that yet. Only the last one may
    be a Dropped of reason `BAD_FILE`, which says how many rows came before it.

    Args:
        keyed: whether a JSON object is `{image_id: row}`; its rows get their `image_id` as a field.
    """
    num_rows = 0
    try:
        for row, position in _rows(file.path, keyed):
            if file.extra and isinstance(row, dict):
                row = {**row, **file.extra}
            yield row, position
            num_rows += 1
    except (OSError, pa.ArrowException, ValueError, *UNPACKING_ERRORS) as error:
        what = str(error).strip().partition("\n")[0]
        message = (
            f"{file.path.name}: expected a whole file, got: {what}; {num_rows:,} rows came before that, "
            "the rest of it is lost, fetch it again"
        )
        dropped = Dropped(file.path.name, BAD_FILE, message)
        yield dropped, file.path.stat().st_size
    else:
        if num_rows == 0:
            message = f"{file.path.name}: expected rows, got none; fetch the file again if it should have some"
            dropped = Dropped(file.path.name, EMPTY_FILE, message)
            yield dropped, file.path.stat().st_size


def _rows(path: Path, keyed: bool) -> Iterator[tuple[Any, int]]:
    head = read_head(path, 4096)
    kind = kind_of(head)
    if kind in (LFS_POINTER, HTML):
        raise BrokenText(f"{kind.name} ({kind.remedy})")
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    if path.suffix == ".arrow":
        return _arrow_rows(path, is_stream=kind != ARROW)
    if path.suffix == ".csv":
        return csv_rows(path, MAX_LINE_BYTES)
    if is_binary(head):
        raise BrokenText(f"{kind.name} under the name of a JSON text")
    # In a file of lines, every object is a row.
    keyed = keyed and _kind(path) != ".jsonl"
    return json_rows(path, keyed, MAX_LINE_BYTES)


@contextmanager
def arrow_batches(path: Path) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """The schema of a parquet or arrow file and its rows in batches.

    Raises:
        UserError: the file cannot be read, or breaks off.
    """
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
                yield file.schema_arrow, file.iter_batches(BATCH_ROWS)
        else:
            with pa.memory_map(str(path)) as data, pa.ipc.open_stream(data) as batches:
                yield batches.schema, _sliced(batches)
    except (OSError, pa.ArrowException) as error:
        what = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{path}: expected a whole file, got: {what}; fetch it again"
        ) from error


def _parquet_rows(path: Path) -> Iterator[tuple[Any, int]]:
    size = path.stat().st_size
    # Pre-buffering would read a whole row group, however large, into memory.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        num_rows = file.metadata.num_rows
        for number, row in _numbered(file.iter_batches(BATCH_ROWS), path):
            yield row, size * number // num_rows


def _arrow_rows(path: Path, is_stream: bool) -> Iterator[tuple[Any, int]]:
    """The rows of a stream of batches, as `datasets` writes it, or of a file of them, as others do."""
    with pa.memory_map(str(path)) as file:
        if is_stream:
            batches: Iterable[pa.RecordBatch] = pa.ipc.open_stream(file)
        else:
            reader = pa.ipc.open_file(file)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        for _, row in _numbered(_sliced(batches), path):
            yield row, min(file.tell(), file.size())


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

"""Prompts and preference pairs on disk: one folder per data set, which can be moved as a whole.

    pairs.parquet     one row per pair (or prompts.parquet: one row per prompt)
    images/           an ImageStore; rows name its files relative to it
    spec.json         what the set was made with: resolved settings and the model's hash
    stats.json        how making it went

A row holds what its record holds (`common.data.rows`). Reading gives back exactly what was written, except that image
paths follow the folder to where it now is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from common.data.images import ImageStore
from common.data.rows import (
    PAIR_SCHEMA,
    PROMPT_SCHEMA,
    pair_of,
    pair_row,
    prompt_of,
    prompt_row,
    python_rows,
)
from common.errors import Refused, UserError
from common.paths import replace_file, writing
from common.records import Dropped, PreferencePair, Prompt

PAIRS = "pairs.parquet"
PROMPTS = "prompts.parquet"
SPEC = "spec.json"
STATS = "stats.json"
IMAGES = "images"

BATCH_ROWS = 1024
"""How many rows `iter_pairs` holds in memory."""

Record = TypeVar("Record", Prompt, PreferencePair)


def read_pairs(
    directory: Path,
    dropped: list[Dropped] | None = None,
) -> list[PreferencePair]:
    """All pairs of a set, in order.

    Args:
        dropped: collects the rows that are not usable, under the reasons `bad_row`, `bad_truth`, `image_count`,
            `image_missing`, `path_outside`, `pair_identical` and `duplicate_id`. Without it, the first such row is an
            error.

    Raises:
        UserError: there is no readable `pairs.parquet`, or it has other columns.
        Refused: a row is not usable, and `dropped` is not given.
    """
    table = read_table(directory / PAIRS, PAIR_SCHEMA)
    rows = enumerate(python_rows(table))
    store = ImageStore(directory / IMAGES)
    return list(_records(rows, pair_of, store, dropped))


def iter_pairs(
    directory: Path,
    dropped: list[Dropped] | None = None,
    rows: Collection[int] | None = None,
) -> Iterator[PreferencePair]:
    """The pairs that `read_pairs` gives, one at a time in bounded memory; with `rows`, only those row numbers."""
    numbered = _numbered_rows(directory / PAIRS, rows)
    return _records(numbered, pair_of, ImageStore(directory / IMAGES), dropped)


def _numbered_rows(
    path: Path,
    wanted: Collection[int] | None,
) -> Iterator[tuple[int, Any]]:
    """(row number, row) of a pair set, for the wanted row numbers or for all."""
    first = 0
    with (
        parquet_errors(path, PAIR_SCHEMA),
        # Pre-buffering would read a whole row group, however large, into memory.
        pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file,
    ):
        for batch in file.iter_batches(BATCH_ROWS, columns=PAIR_SCHEMA.names):
            offsets = list(range(len(batch)))
            if wanted is not None:
                offsets = [offset for offset in offsets if first + offset in wanted]
            if offsets:
                table = pa.Table.from_batches([batch])
                table = table.select(PAIR_SCHEMA.names).cast(PAIR_SCHEMA)
                rows = python_rows(table.take(offsets))
                for offset, row in zip(offsets, rows, strict=True):
                    yield first + offset, row
            first += len(batch)


def iter_batches(
    path: Path, schema: pa.Schema, rows: int | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a set's parquet file in batches, or its first `rows` (UserError as for `read_table`)."""
    num_left = rows
    with (
        parquet_errors(path, schema),
        pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file,
    ):
        for batch in file.iter_batches(BATCH_ROWS, columns=schema.names):
            batch = batch.select(schema.names).cast(schema)
            if num_left is not None:
                batch = batch.slice(0, num_left)
                num_left -= len(batch)
            yield batch
            if num_left == 0:
                return


def count_pairs(directory: Path) -> int:
    """The number of rows of a pair set, from the file's footer alone (UserError as for `read_pairs`)."""
    path = directory / PAIRS
    with parquet_errors(path, PAIR_SCHEMA), pq.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def read_prompts(
    directory: Path,
    dropped: list[Dropped] | None = None,
    count: int | None = None,
) -> list[Prompt]:
    """All prompts of a set, in order, or those of its first `count` rows; `dropped` and errors as for `read_pairs`."""
    table = read_table(directory / PROMPTS, PROMPT_SCHEMA).slice(0, count)
    rows = enumerate(python_rows(table))
    store = ImageStore(directory / IMAGES)
    return list(_records(rows, prompt_of, store, dropped))


def write_pairs(
    directory: Path,
    pairs: Iterable[PreferencePair],
    spec: Mapping[str, Any] | None = None,
    stats: Mapping[str, Any] | None = None,
) -> None:
    """Write a whole set of pairs at once; `common.data.pair_writer` writes one step by step. Images are copied in."""
    write_json(directory / SPEC, spec or {})
    write_json(directory / STATS, stats or {})
    write_table(directory / PAIRS, pair_table(pairs, ImageStore(directory / IMAGES)))


def write_prompts(directory: Path, prompts: Iterable[Prompt]) -> None:
    """Write a whole set of prompts at once. Images are copied in."""
    store = ImageStore(directory / IMAGES)
    rows = [prompt_row(prompt, store) for prompt in prompts]
    table = pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA)
    write_table(directory / PROMPTS, table)


def pair_table(pairs: Iterable[PreferencePair], store: ImageStore) -> pa.Table:
    """A table of `PAIR_SCHEMA`; images that lie outside `store` are copied into it."""
    rows = [pair_row(pair, store) for pair in pairs]
    return pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """The columns of `schema` of a parquet file, with the file's metadata.

    Raises:
        UserError: the file is missing or damaged, or has other columns.
    """
    with parquet_errors(path, schema):
        table = pq.ParquetFile(path).read()
        columns = table.select(schema.names).cast(schema)
        # A cast takes over the metadata of `schema`, which has none.
        return columns.replace_schema_metadata(table.schema.metadata)


@contextmanager
def parquet_errors(path: Path, schema: pa.Schema) -> Iterator[None]:
    """Turn what pyarrow raises about the file at `path` into a UserError."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: expected a parquet file, got none; check the path of the data set"
        ) from error
    except (pa.ArrowException, OSError, KeyError) as error:
        what = str(error).splitlines()[0].strip("'\"")
        raise UserError(
            f"{path}: expected a parquet file with the columns {', '.join(schema.names)}, got: {what}; write it again"
        ) from error


def write_table(path: Path, table: pa.Table) -> None:
    """Write a parquet file aside, fsync it and rename it into place: there is never half a file under `path`."""
    write_tables(path, table.schema, [table])


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write one file from several tables, as `write_table` does, with one of them in memory at a time.

    An exception that the iterator raises leaves the old file at `path` as it was.
    """
    with writing(path):
        _write_tables(path, schema, tables)


def _write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            with pq.ParquetWriter(file, schema) as writer:
                for table in tables:
                    writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file as a whole or not at all."""
    replace_file(path, json.dumps(value, indent=2) + "\n")


def record_of(
    number: int,
    row: Any,
    build: Callable[[dict[str, Any], ImageStore], Record],
    store: ImageStore,
) -> Record | Dropped:
    """The record of one row of a set, or why it cannot be used; see `read_pairs` for the reasons."""
    id = "unreadable" if isinstance(row, Exception) else str(row["id"])
    name = f"row {number} ({id})"
    try:
        if isinstance(row, Exception):
            raise row
        return build(row, store)
    except Refused as error:
        return Dropped(id, error.reason, str(error))
    except (TypeError, KeyError, ValueError, ArithmeticError) as error:
        detail = f"{name}: expected a complete record, got {error!r}; repair it"
        return Dropped(id, "bad_row", detail)


def duplicate(number: int, id: str) -> Dropped:
    """The drop of a row whose id an earlier row has."""
    detail = f"row {number} ({id}): expected an id of its own, got an earlier row's; rename it"
    return Dropped(id, "duplicate_id", detail)


def _records(
    rows: Iterable[tuple[int, Any]],
    build: Callable[[dict[str, Any], ImageStore], Record],
    store: ImageStore,
    dropped: list[Dropped] | None,
) -> Iterator[Record]:
    """The records of numbered rows; unusable rows go to `dropped`, or are raised when it is None."""
    seen: set[str] = set()
    for number, row in rows:
        record: Record | Dropped = record_of(number, row, build, store)
        if not isinstance(record, Dropped):
            if record.id not in seen:
                seen.add(record.id)
                yield record
                continue
            record = duplicate(number, record.id)
        if dropped is None:
            raise Refused(record.reason, record.detail)
        dropped.append(record)

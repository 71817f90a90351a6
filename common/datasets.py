"""Prompts and preference pairs on disk: one folder per set, which can be moved as a whole.

    pairs.parquet   one row per pair         images/      ImageStore, rows name its files relative to it
    prompts.parquet one row per prompt       spec.json    what made the set: resolved settings and the model's hash
                                             stats.json   how making it went

A row holds what the record holds: messages as lists of (role, parts), `truth` as JSON text (so it must be made of
JSON's own types), token ids as int32. What is read equals what was written; only image paths move with the folder.
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

from common.errors import Refused, UserError
from common.images import ImageStore
from common.paths import replace_file
from common.records import Dropped, PreferencePair, Prompt
from common.rows import (
    PAIR_SCHEMA,
    PROMPT_SCHEMA,
    pair_of,
    pair_row,
    prompt_of,
    prompt_row,
    python_rows,
)

PAIRS, PROMPTS, SPEC, STATS, IMAGES = (
    "pairs.parquet",
    "prompts.parquet",
    "spec.json",
    "stats.json",
    "images",
)

BATCH_ROWS = 1024
"""Rows that `iter_pairs` holds in memory."""

Record = TypeVar("Record", Prompt, PreferencePair)


def read_pairs(
    directory: Path, dropped: list[Dropped] | None = None
) -> list[PreferencePair]:
    """All pairs of a set, in order.

    With `dropped`, rows that are no pair are left out and appended to it under the reasons `bad_row`, `bad_truth`,
    `image_count`, `image_missing`, `path_outside` and `duplicate_id`; without it the first such row is an error.

    Raises:
        UserError: there is no readable `pairs.parquet`, or it has other columns.
    """
    table = read_table(directory / PAIRS, PAIR_SCHEMA)
    return list(
        _records(
            enumerate(python_rows(table)),
            pair_of,
            ImageStore(directory / IMAGES),
            dropped,
        )
    )


def iter_pairs(
    directory: Path,
    dropped: list[Dropped] | None = None,
    rows: Collection[int] | None = None,
) -> Iterator[PreferencePair]:
    """What `read_pairs` gives, one by one in bounded memory; with `rows`, of these row numbers only."""

    def chosen_rows() -> Iterator[tuple[int, Any]]:
        path, first = directory / PAIRS, 0
        with (
            _parquet_errors(path, PAIR_SCHEMA),
            pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file,
        ):
            for batch in file.iter_batches(BATCH_ROWS, columns=PAIR_SCHEMA.names):
                numbers = [
                    n
                    for n in range(first, first + len(batch))
                    if rows is None or n in rows
                ]
                first += len(batch)
                table = (
                    pa.Table.from_batches([batch])
                    .select(PAIR_SCHEMA.names)
                    .cast(PAIR_SCHEMA)
                )
                found = (
                    table.take([n - first + len(batch) for n in numbers])
                    if numbers
                    else table.slice(0, 0)
                )
                yield from zip(numbers, python_rows(found), strict=True)

    return _records(chosen_rows(), pair_of, ImageStore(directory / IMAGES), dropped)


def count_pairs(directory: Path) -> int:
    """Rows of a pair set, read from the file's footer alone (UserError as for `read_pairs`)."""
    path = directory / PAIRS
    with _parquet_errors(path, PAIR_SCHEMA), pq.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def read_prompts(
    directory: Path, dropped: list[Dropped] | None = None, count: int | None = None
) -> list[Prompt]:
    """All prompts of a set, or those of its first `count` rows, in order; `dropped` and errors as for `read_pairs`."""
    table = read_table(directory / PROMPTS, PROMPT_SCHEMA).slice(0, count)
    return list(
        _records(
            enumerate(python_rows(table)),
            prompt_of,
            ImageStore(directory / IMAGES),
            dropped,
        )
    )


def write_pairs(
    directory: Path,
    pairs: Iterable[PreferencePair],
    spec: Mapping[str, Any] | None = None,
    stats: Mapping[str, Any] | None = None,
) -> None:
    """Write a whole set at once (`common.pair_writer` writes one bit by bit). Images from elsewhere are copied in."""
    write_json(directory / SPEC, spec or {})
    write_json(directory / STATS, stats or {})
    write_table(directory / PAIRS, pair_table(pairs, ImageStore(directory / IMAGES)))


def write_prompts(directory: Path, prompts: Iterable[Prompt]) -> None:
    """Write a whole set of prompts at once. Images from elsewhere are copied in."""
    store = ImageStore(directory / IMAGES)
    rows = [prompt_row(prompt, store) for prompt in prompts]
    write_table(directory / PROMPTS, pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA))


def pair_table(pairs: Iterable[PreferencePair], store: ImageStore) -> pa.Table:
    """Rows of `PAIR_SCHEMA`; images that `store` does not hold are added to it."""
    return pa.Table.from_pylist(
        [pair_row(pair, store) for pair in pairs], schema=PAIR_SCHEMA
    )


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """A parquet file's columns of `schema`, file metadata kept (UserError when missing, damaged or different)."""
    with _parquet_errors(path, schema):
        table = pq.ParquetFile(path).read()
        metadata = table.schema.metadata
        return table.select(schema.names).cast(schema).replace_schema_metadata(metadata)


@contextmanager
def _parquet_errors(path: Path, schema: pa.Schema) -> Iterator[None]:
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
    """Write aside, fsync, rename: under `path` there is never half a file."""
    write_tables(path, table.schema, [table])


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """As `write_table`, from tables of which one at a time need be in memory; what they raise leaves `path` alone."""
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
    """Write aside, then rename."""
    replace_file(path, json.dumps(value, indent=2) + "\n")


def _records(
    rows: Iterable[tuple[int, Any]],
    build: Callable[[dict[str, Any], ImageStore], Record],
    store: ImageStore,
    dropped: list[Dropped] | None,
) -> Iterator[Record]:
    seen: set[str] = set()
    for number, row in rows:
        id = "unreadable" if isinstance(row, Exception) else str(row["id"])
        name = f"row {number} ({id})"
        try:
            if isinstance(row, Exception):
                raise row
            record = build(row, store)
            if record.id in seen:
                raise Refused(
                    "duplicate_id",
                    f"{name}: expected an id of its own, got an earlier row's; rename it",
                )
        except Refused as error:
            if dropped is None:
                raise
            dropped.append(Dropped(id, error.reason, str(error)))
        except (TypeError, KeyError, ValueError, ArithmeticError) as error:
            if dropped is None:
                raise Refused(
                    "bad_row",
                    f"{name}: expected a complete record, got {error!r}; repair it",
                ) from error
            dropped.append(Dropped(id, "bad_row", f"{name}: {error!r}"))
        else:
            seen.add(record.id)
            yield record

"""Rows on disk that are read one at a time by number, in whatever order: an Arrow file of small batches of one size.

Parquet reads a row group at a time and JSON a file at a time, so both are rewritten once, in bounded memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.data.rows import python_rows

MAX_BATCH_ROWS = 256
BATCH_BYTES = 1 << 20
"""About how much is read for one row."""

_ROWS_PER_BATCH = b"rows_per_batch"
_JSON = "json"
_JSON_SCHEMA = pa.schema([(_JSON, pa.large_string())])
_LZ4 = pa.ipc.IpcWriteOptions(compression="lz4")


class RowStore:
    """The rows of a file that `store_batches` or `store_json` wrote."""

    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_file(pa.OSFile(str(path)))
        schema = self._reader.schema
        self._is_json = schema.names == [_JSON]
        self._rows_per_batch = int(schema.metadata[_ROWS_PER_BATCH])
        # The batch that was read last: neighbours are often read one after another.
        self._number = -1
        self._batch: pa.RecordBatch | None = None

    def __len__(self) -> int:
        num_whole: int = self._reader.num_record_batches - 1
        if num_whole < 0:
            return 0
        return num_whole * self._rows_per_batch + len(self._batch_of(num_whole))

    def row(self, number: int) -> Any:
        """The row of this number, or the exception that converting it raises, see `rows.python_rows`."""
        batch_number, offset = divmod(number, self._rows_per_batch)
        batch = self._batch_of(batch_number)
        (row,) = python_rows(batch.slice(offset, 1))
        return json.loads(row[_JSON]) if self._is_json else row

    def _batch_of(self, number: int) -> pa.RecordBatch:
        if number != self._number:
            self._batch = self._reader.get_batch(number)
            self._number = number
        return self._batch


def store_batches(
    path: Path,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
) -> RowStore:
    """Write rows that are Arrow's already; one batch is in memory at a time."""
    remaining = iter(batches)
    first = next(remaining, None)
    rows_per_batch = _rows_per_batch(first)
    text = str(rows_per_batch)
    schema = schema.with_metadata({_ROWS_PER_BATCH: text})
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_file(file, schema, options=_LZ4) as writer,
    ):
        if first is not None:
            all_batches = chain([first], remaining)
            for batch in _even(all_batches, rows_per_batch):
                batch = batch.replace_schema_metadata(schema.metadata)
                writer.write_batch(batch)
    return RowStore(path)


def _rows_per_batch(first: pa.RecordBatch | None) -> int:
    """How many rows make `BATCH_BYTES`, if all are like the first ones."""
    if first is None or len(first) == 0:
        return MAX_BATCH_ROWS
    bytes_per_row = max(1, first.nbytes // len(first))
    num_rows: int = max(1, BATCH_BYTES // bytes_per_row)
    return min(MAX_BATCH_ROWS, num_rows)


def store_json(path: Path, rows: Iterable[Any]) -> RowStore:
    """Write rows of JSON types, such as those of a JSON or CSV file."""
    batches = _json_batches(rows)
    return store_batches(path, _JSON_SCHEMA, batches)


def _json_batches(rows: Iterable[Any]) -> Iterator[pa.RecordBatch]:
    texts = map(json.dumps, rows)
    while block := list(islice(texts, MAX_BATCH_ROWS)):
        column = pa.array(block, pa.large_string())
        yield pa.record_batch([column], schema=_JSON_SCHEMA)


def _even(
    batches: Iterable[pa.RecordBatch],
    num_rows: int,
) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of `num_rows`; the last one may be shorter."""
    rest: pa.RecordBatch | None = None
    for batch in batches:
        if rest is not None:
            batch = pa.concat_batches([rest, batch])
        start = 0
        while start + num_rows <= len(batch):
            yield batch.slice(start, num_rows)
            start += num_rows
        rest = batch.slice(start)
    if rest is not None and len(rest):
        yield rest

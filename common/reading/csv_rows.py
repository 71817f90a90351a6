"""The rows of a CSV file with a header, such as metadata.csv. Values are texts; empty ones are None."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.reading.byte_streams import Readable, open_stream
from common.reading.json_stream import BrokenText
from common.records import Dropped

_TOO_MANY = "more values than the header has names"


def csv_rows(path: Path, max_bytes: int) -> Iterator[tuple[Any, int]]:
    """(row or Dropped `bad_row`, bytes read so far) for every row of a file.

    Args:
        max_bytes: the longest value.

    Raises:
        ValueError: the file cannot be decoded, or is no CSV; OSError and others: it cannot be read or unpacked.
    """
    csv.field_size_limit(max_bytes)
    with open_stream(path) as stream:
        lines = _lines(stream.text, max_bytes)
        reader = csv.DictReader(lines, restkey=_TOO_MANY)
        try:
            for number, row in enumerate(reader, start=1):
                yield _read(row, path.name, number), stream.file.tell()
        except csv.Error as error:
            raise BrokenText(
                f"it breaks off in line {reader.line_num}: {error}"
            ) from error


def _lines(text: Readable, max_bytes: int) -> Iterator[str]:
    while line := text.readline(max_bytes):
        yield line.decode()


def _read(row: dict[str, Any], file: str, number: int) -> Any:
    if _TOO_MANY in row:
        message = f"row {number}: expected a value per name of the header, got {_TOO_MANY}; quote those with commas"
        return Dropped(f"{file}:{number}", "bad_row", message)
    return {name: value or None for name, value in row.items()}

"""Reads the files of a benchmark as its authors publish them, and says in one line what is wrong with them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from common.errors import Refused, UserError
from common.reading.readers import DataFile, file_rows
from common.records import Dropped

Row: TypeAlias = Mapping[str, Any]
Facts: TypeAlias = dict[str, Any]
"""JSON: what an answer is measured by, and what the official answer file repeats."""
Counts: TypeAlias = dict[str, int]

MAX_WHOLE_BYTES = 1 << 30
"""Files that are read at once; lists of questions are far below it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that a benchmark asks.

    Attributes:
        id: unique in the benchmark.
        question: as published, without the instruction below it.
        image: what `ImageIntake.add` takes: paths below the folder of pictures, or encoded bytes; None for none.
        group: what is measured and redrawn together, mostly the picture.
        facts: what an answer is measured by.
    """

    id: str
    question: str
    image: Any
    group: str
    facts: Facts
    task: str = "questions"


@dataclass(slots=True)
class Published:
    """The items of a benchmark in the order of their files, and the rows that are none."""

    items: list[Item] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)


def folder_of(
    path: str,
    key: str,
) -> Path:
    """The folder that a setting names (UserError when there is none)."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{key}: expected a folder, got {path}; check the path")
    return folder


def find_file(
    folder: Path,
    names: Sequence[str],
    key: str,
) -> Path:
    """The first of these files below a folder, or the only one that a pattern matches (UserError for none)."""
    for name in names:
        matches = sorted(folder.glob(name))
        if matches:
            return matches[0]
    expected = " or ".join(names)
    raise UserError(
        f"{key}: expected {expected} below {folder}, got no such file; put the published files there"
    )


def read_rows(
    file: Path,
    dropped: list[Dropped],
    keyed: bool = False,
) -> Iterator[Row]:
    """The rows of a JSON file: a list, lines, or with `keyed` an object of rows, whose keys become `image_id`."""
    for row, _ in file_rows(DataFile(file), keyed):
        if isinstance(row, Dropped):
            dropped.append(row)
        elif isinstance(row, dict):
            yield row
        else:
            kind = type(row).__name__
            detail = f"{file.name}: expected one JSON object a row, got {kind}"
            dropped.append(Dropped(file.name, "bad_row", detail))


def read_whole(
    file: Path,
    expected: type,
) -> Any:
    """A JSON file at once (UserError when it cannot be read or is of another type)."""
    if file.stat().st_size > MAX_WHOLE_BYTES:
        raise UserError(
            f"{file}: expected at most {MAX_WHOLE_BYTES:,} bytes, got more; check the file"
        )
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: expected readable JSON, got: {error}; fetch it again"
        ) from error
    if not isinstance(content, expected):
        kind = type(content).__name__
        raise UserError(
            f"{file}: expected a JSON {expected.__name__}, got {kind}; check the file"
        )
    return content


def read_table(file: Path) -> list[Row]:
    """The rows of a CSV file with a header (UserError when it cannot be read)."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{file}: expected a readable CSV file, got: {error}; fetch it again"
        ) from error


def columns(
    row: Row,
    *names: str,
) -> list[Any]:
    """The values of these columns (Refused `bad_row` when one is missing or empty)."""
    missing = [name for name in names if row.get(name) in (None, "")]
    if missing:
        expected = ", ".join(names)
        got = ", ".join(map(str, row)) or "none"
        raise Refused(
            "bad_row",
            f"expected columns {expected}, got {got[:200]}; check that this is the benchmark's own file",
        )
    return [row[name] for name in names]


def collect(
    rows: Iterable[Any],
    item_of: Callable[[int, Row], Item],
    file: Path,
    key: str,
    dropped: Sequence[Dropped] = (),
) -> Published:
    """The items of a file's rows, and why the other rows are none.

    Args:
        item_of: makes an item of (number from 1, row); raises Refused when it cannot.
        dropped: what was no row.

    Raises:
        UserError: no row is of use, with one example of why.
    """
    published = Published(dropped=list(dropped))
    ids: set[str] = set()
    for number, row in enumerate(rows, start=1):
        row_id = f"{file.name}:{number}"
        try:
            item = _checked(item_of, number, row)
            if item.id in ids:
                raise Refused(
                    "duplicate_id",
                    f"row {number}: expected an id of its own, got {item.id} again; repair the file",
                )
            ids.add(item.id)
            published.items.append(item)
        except Refused as error:
            published.dropped.append(Dropped(row_id, error.reason, str(error)))
    if published.items:
        return published
    example = published.dropped[0].detail if published.dropped else "it is empty"
    raise UserError(f"{key}: expected questions in {file}, got none of use: {example}")


def _checked(
    item_of: Callable[[int, Row], Item],
    number: int,
    row: Any,
) -> Item:
    """The item, where values of types that nobody expects are refused as well."""
    if not isinstance(row, Mapping):
        kind = type(row).__name__
        raise Refused("bad_row", f"row {number}: expected a JSON object, got {kind}")
    try:
        return item_of(number, row)
    except Refused:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise Refused(
            "bad_row", f"row {number}: expected the benchmark's values, got: {error}"
        ) from error

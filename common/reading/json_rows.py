"""The rows of a JSON file, however they are laid out; the name of the file says less than its beginning.

    [{…}, {…}]                  a list
    {…}\\n{…}            JSON lines, or objects over several lines
    {"data": [{…}, {…}]}        a list within an object, beside whatever else the object holds
    {"17": {…}, "18": {…}}      an object of rows, where the importer says that its data set has one

Rows are parsed one by one as Python writes them, NaN and Infinity included.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from common.reading.byte_streams import Readable, open_stream, read_head
from common.reading.json_stream import BrokenText, JsonText
from common.reading.splits import TRAIN, split_key
from common.records import Dropped

HEAD_BYTES = 1 << 20
"""How much of a file is looked at to tell how its rows are laid out."""
ROW_LISTS = {
    "annotations",
    "data",
    "dataset",
    "examples",
    "instances",
    "items",
    "pairs",
    "records",
    "rows",
    "samples",
}
"""Keys under which an object has the rows of its file as a list, beside the names of splits."""


def json_rows(path: Path, keyed: bool, max_bytes: int) -> Iterator[tuple[Any, int]]:
    """(row or Dropped `bad_row`, bytes read so far) for every row of a file.

    Args:
        keyed: whether an object is `{image_id: row}`; its rows get their `image_id` as a field.
        max_bytes: the longest row. A longer line is one Dropped; a longer element of a list ends the file.

    Raises:
        ValueError: the file breaks off or cannot be decoded; OSError and others: it cannot be read or unpacked.
    """
    head = read_head(path, HEAD_BYTES).lstrip()
    with open_stream(path) as stream:
        reader = _Rows(stream.text, path.name, max_bytes)
        if head.startswith(b"["):
            rows = reader.of_list()
        elif head.startswith(b"{") and keyed:
            rows = reader.of_keyed_object()
        elif head.startswith(b"{") and not _is_line(head) and _holds_objects(head):
            rows = reader.of_objects()
        else:
            rows = reader.of_lines()
        for row in rows:
            yield row, stream.file.tell()


def _is_line(head: bytes) -> bool:
    """Whether the first line of a file is a row, and not the whole of it."""
    line, _, rest = head.partition(b"\n")
    is_whole = isinstance(_parsed(line.rstrip(b", \t\r")), dict)
    return is_whole and rest.lstrip().startswith(b"{")


def _holds_objects(head: bytes) -> bool:
    """Whether the object that a file begins with goes on behind its first line, or holds its rows in a list."""
    line, line_feed, _ = head.partition(b"\n")
    goes_on = line.rstrip().endswith((b"{", b"[", b",")) and line_feed
    if goes_on and isinstance(_parsed(line.rstrip(b", \t\r")), _Unparsed):
        return True
    text = JsonText(BytesIO(head), len(head))
    try:
        for key in text.members():
            if _is_row_list(key, text):
                return True
            text.value()
    except BrokenText:  # the head ends within it
        pass
    return False


def _is_row_list(key: str, text: JsonText) -> bool:
    """Whether the value that comes next is a list of rows."""
    return text.peek() == b"[" and (key in ROW_LISTS or split_key(key) is not None)


class _Unparsed(str):
    """Why a text has no value."""


def _parsed(text: bytes) -> Any:
    """The value of a JSON text, NaN and Infinity included."""
    try:
        return json.loads(text, object_pairs_hook=unambiguous)
    except (ValueError, RecursionError) as error:
        return _Unparsed(error)


def unambiguous(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members as a dict (ValueError where a key has two values, of which Python would take the last)."""
    fields = dict(members)
    if len(fields) == len(members):
        return fields
    for key, value in members:
        if fields[key] != value:
            raise ValueError(f"two values under {key[:40]!r}")
    return fields


class _Rows:
    """Reads the rows of one file. Every method is a generator, and may raise BrokenText."""

    def __init__(self, stream: Readable, name: str, max_bytes: int) -> None:
        self._stream = stream
        self._name = name
        self._max_bytes = max_bytes
        self._num_rows = 0

    def of_list(self) -> Iterator[Any]:
        """The elements of a list."""
        text = JsonText(self._stream, self._max_bytes)
        yield from self._elements(text)
        _expect_end(text)

    def of_keyed_object(self) -> Iterator[Any]:
        """The values of an object, each with its key as `image_id`."""
        text = JsonText(self._stream, self._max_bytes)
        for key in text.members():
            if _is_row_list(key, text):
                yield from self._elements(text)
                continue
            row = self._row(text.value())
            if isinstance(row, dict):
                row = {**row, "image_id": key}
            yield row
        _expect_end(text)

    def of_objects(self) -> Iterator[Any]:
        """Objects that are rows, or that hold rows in lists; one after another, with or without commas."""
        text = JsonText(self._stream, self._max_bytes)
        while text.peek():
            fields = []
            holds_rows = False
            for key in text.members():
                if _is_row_list(key, text):
                    holds_rows = True
                    yield from self._elements_of_split(key, text)
                else:
                    fields.append(json.dumps(key).encode() + b":" + text.value())
            if not holds_rows:
                yield self._row(b"{" + b",".join(fields) + b"}")
            if text.peek() == b",":
                text.take(b",")

    def of_lines(self) -> Iterator[Any]:
        """The objects of JSON lines, which may have a comma at their ends."""
        for number, (line, too_long) in enumerate(self._lines(), start=1):
            if not line.strip():
                continue
            if too_long:
                error = f"more than {self._max_bytes:,} bytes"
                yield self._bad_row(f"line {number}", number, error)
                continue
            row = _parsed(line.rstrip(b", \t\r\n"))
            if isinstance(row, _Unparsed):
                if not line.endswith(b"\n"):
                    raise BrokenText(f"it breaks off in line {number}")
                row = self._bad_row(f"line {number}", number, row)
            yield row

    def _lines(self) -> Iterator[tuple[bytes, bool]]:
        """(line, whether it was too long and is cut) for every line."""
        while line := self._stream.readline(self._max_bytes):
            too_long = len(line) >= self._max_bytes and not line.endswith(b"\n")
            rest = line
            while too_long and rest and not rest.endswith(b"\n"):
                rest = self._stream.readline(self._max_bytes)
            yield line, too_long

    def _elements(self, text: JsonText) -> Iterator[Any]:
        for element in text.items():
            yield self._row(element)

    def _elements_of_split(self, key: str, text: JsonText) -> Iterator[Any]:
        """The rows of a list within an object; one Dropped for a list whose key says that it is not to train on."""
        if split_key(key) in (None, TRAIN):
            yield from self._elements(text)
            return
        num_rows = sum(1 for _ in text.items())
        yield Dropped(
            f"{self._name}:{key}",
            "other_split",
            f"expected rows to train on, got {num_rows:,} under {key!r}; to import them, put them into a file",
        )

    def _row(self, text: bytes) -> Any:
        """The next row, of this text; Dropped when it is no JSON."""
        self._num_rows += 1
        row = _parsed(text)
        if isinstance(row, _Unparsed):
            return self._bad_row(f"row {self._num_rows}", self._num_rows, row)
        return row

    def _bad_row(self, where: str, number: int, error: str) -> Dropped:
        message = f"{where}: expected one JSON object, got: {error}; repair it"
        return Dropped(f"{self._name}:{number}", "bad_row", message)


def _expect_end(text: JsonText) -> None:
    if text.peek():
        raise BrokenText("more text behind the end of its rows")

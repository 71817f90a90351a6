"""The lines of a file that grows, each read once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_LINES = 2000
"""Of one call, so that whoever waits for the lock gets it in between."""


class Line(NamedTuple):
    """One whole line: where it begins in the file, in bytes, and the object that it holds."""

    offset: int
    value: dict[str, Any]


class GrowingFile:
    """Follows a file of JSON lines that others append to.

    Attributes:
        offset: the bytes that were read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self._inode: int | None = None

    @property
    def size(self) -> int:
        """Bytes of the file now."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def was_replaced(self) -> bool:
        """Whether another file has taken its place since it was read, or it was cut: then all of it is news."""
        if self._inode is None:
            return False
        try:
            status = self.path.stat()
        except OSError:
            return True
        return status.st_ino != self._inode or status.st_size < self.offset

    def new_lines(self) -> Iterator[Line]:
        """The next whole lines, at most `MAX_LINES`; what is no JSON object is passed over."""
        try:
            file = self.path.open("rb")
        except OSError:
            return
        with file:
            self._inode = self.path.stat().st_ino
            file.seek(self.offset)
            for _ in range(MAX_LINES):
                line = file.readline()
                # Its end is still to come.
                if not line.endswith(b"\n"):
                    return
                offset = self.offset
                self.offset += len(line)
                value = parsed(line)
                if value is not None:
                    yield Line(offset, value)


def read_at(path: Path, offset: int) -> dict[str, Any]:
    """The object of the line that begins there; {} when it is there no more."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return parsed(file.readline()) or {}
    except OSError:
        return {}


def parsed(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None where a crash has cut it."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None

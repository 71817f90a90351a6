"""The append-only record of a run: one JSON line per event, durable when `sync` returns."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.paths import writing

FLUSH_S = 2.0
"""Whoever follows a run that makes no steps still sees what happens, so much later."""


class Journal:
    """Appends events to `RUN_DIR/journal/events.jsonl`. A line that a crash cut stays there, and readers skip it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failure: OSError | None = None
        self._flushed_at = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        is_torn = _ends_inside_a_line(path)
        self._file = path.open("a", encoding="utf-8")
        if is_torn:
            # Else the next event would continue the cut line, and both would be lost.
            self._file.write("\n")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; buffered until `sync`."""
        if self._failure is not None:
            raise self._failure
        line = {"event": event, "time": round(time.time(), 3), **fields}
        with self._failing_once():
            self._file.write(json.dumps(line) + "\n")
            if time.monotonic() - self._flushed_at > FLUSH_S:
                self._flushed_at = time.monotonic()
                self._file.flush()

    def sync(self) -> None:
        """Flush to the disk itself. Called once per learner step."""
        if self._failure is not None:
            raise self._failure
        with self._failing_once():
            # `flush` hands the lines to the system, which may still keep them in memory.
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()

    @contextmanager
    def _failing_once(self) -> Iterator[None]:
        """Close the file when it cannot be written, or Python would try again, and complain, until the end."""
        try:
            with writing(self._path):
                yield
        except OSError as error:
            self._failure = error
            with suppress(OSError):
                self._file.close()
            raise


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole event of a journal, in order."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                # Cut by a crash; the run went on in a new line.
                continue


def _ends_inside_a_line(path: Path) -> bool:
    if not path.exists():
        return False
    # Of a long run it does not fit into memory.
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read() not in (b"", b"\n")

"""How far a long job is: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_INTERVAL_S = 5.0


class ProgressReport:
    """Counts up from `done` to `total`; a context manager. Writes to standard error only.

    The rate is of this process, so a resumed job's estimate does not count what was there before.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done, self._first = what, total, done, done
        self._began = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> ProgressReport:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def elapsed_s(self) -> float:
        """Seconds since this process began counting."""
        return max(time.monotonic() - self._began, 1e-9)

    @property
    def rate(self) -> float:
        """Steps per second since this process began counting."""
        return (self.done - self._first) / self.elapsed_s

    def advance(self, note: str = "", count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        text = f"{self.rate:.1f}/s {note}"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=text)
        elif time.monotonic() - self._last_line >= LINE_INTERVAL_S:
            self._last_line = time.monotonic()
            left = (self.total - self.done) / max(self.rate, 1e-9)
            print(f"{self.what}: {self.done}/{self.total}, {text}, {left:.0f} s left", file=sys.stderr, flush=True)

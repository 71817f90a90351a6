"""How far a long job is: a bar on a terminal; in a log the first line, the last, and one a minute in between."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

FIRST_LINE_S = 5.0
"""A job that ends before this, done or refused, writes none."""
LINE_INTERVAL_S = 60.0


class ProgressReport:
    """Counts up from `done` to `total`; a context manager. Writes to standard error only.

    The rate is of this process, so a resumed job's estimate does not count what was there before.
    """

    def __init__(
        self,
        what: str,
        total: int,
        done: int = 0,
    ) -> None:
        self.what = what
        self.total = total
        self.done = done
        self._done_before = done
        self._began = time.monotonic()
        self._next_line_s = FIRST_LINE_S
        self._unprinted = ""
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if sys.stderr.isatty():
            self._bar = _make_bar()
            self._task = self._bar.add_task(
                what,
                total=total,
                completed=done,
                note="",
            )

    def __enter__(self) -> ProgressReport:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self.elapsed_s >= FIRST_LINE_S:
            self._print()

    @property
    def elapsed_s(self) -> float:
        """Seconds since this process began counting."""
        # Never 0: it divides.
        return max(time.monotonic() - self._began, 1e-9)

    @property
    def rate(self) -> float:
        """Steps per second since this process began counting."""
        return (self.done - self._done_before) / self.elapsed_s

    def advance(self, note: str = "", count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        text = f"{self.rate:.1f}/s {note}"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=text)
            return
        left_s = (self.total - self.done) / max(self.rate, 1e-9)
        counts = f"{self.done}/{self.total}"
        self._unprinted = f"{self.what}: {counts}, {text}, {left_s:.0f} s left"
        if self.elapsed_s >= self._next_line_s:
            self._next_line_s = self.elapsed_s + LINE_INTERVAL_S
            self._print()

    def _print(self) -> None:
        # The last line of a job may have been printed by the last `advance` already.
        if self._unprinted:
            print(self._unprinted, file=sys.stderr, flush=True)
        self._unprinted = ""


def _make_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )

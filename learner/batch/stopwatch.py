"""A clock that adds up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the seconds of the blocks that it runs for."""

    def __init__(self) -> None:
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count this block."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - begun

    def take(self) -> float:
        """The seconds so far; it starts again at 0."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

"""Writes in a thread while the next steps run, one thing after the other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor

from common.records import WriteReport


class BackgroundWriter:
    """The writer of one rank; what it meets waits for `report`."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._jobs: list[Future[None]] = []

    def restart(self) -> None:
        """Wait for what was begun, and forget what became of it."""
        self.settle()
        self._jobs = []

    def begin(self, write: Callable[[], None]) -> None:
        """Write after what was begun before."""
        self._jobs.append(self._thread.submit(write))

    def settle(self) -> None:
        """Wait for what was begun."""
        futures.wait(self._jobs)

    def report(self) -> WriteReport | None:
        """Of all that was begun since the restart; None while some of it is still being written.

        That something cannot be written is part of the report. Other errors are raised.
        """
        fault: str | None = None
        for job in self._jobs:
            if not job.done():
                return None
            try:
                job.result()
            except OSError as error:
                fault = fault or str(error)
        return WriteReport(fault)

    def close(self) -> None:
        """Let what was begun come to its end."""
        self._thread.shutdown()

"""An event loop whose sleeps cost nothing: time jumps to the next timer when there is nothing to do.

What runs in the meantime takes its own time: the clock counts the CPU seconds of this thread, and waits for other
threads. So hours of a run pass in the minutes that its controller needs, at the speed that it would have had.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable
from typing import Any

THREAD_POLL_S = 0.005


class SimulatedClock(asyncio.SelectorEventLoop):
    """Attributes: `free_s` is CPU time of this thread that shall not count, such as that of simulated workers."""

    def __init__(self) -> None:
        self.skipped_s = 0.0
        self.free_s = 0.0
        self.num_in_threads = 0
        super().__init__(_SkippingSelector(self))

    def time(self) -> float:
        """Seconds of the simulation."""
        return self.skipped_s + time.thread_time() - self.free_s

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """As usual; the clock then runs until the thread has ended."""
        future = super().run_in_executor(executor, func, *args)
        self.num_in_threads += 1
        future.add_done_callback(self._thread_ended)
        return future

    def _thread_ended(self, future: asyncio.Future[Any]) -> None:
        self.num_in_threads -= 1


class _SkippingSelector(selectors.DefaultSelector):
    """Waits in simulated time."""

    def __init__(self, clock: SimulatedClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None or self._clock.num_in_threads:
            return self._wait(timeout)
        self._clock.skipped_s += timeout
        return ready

    def _wait(self, timeout: float | None) -> Any:
        """Wait for a thread, and let the clock run."""
        begin = time.monotonic()
        wait_s = THREAD_POLL_S if timeout is None else min(timeout, THREAD_POLL_S)
        ready = super().select(wait_s)
        self._clock.skipped_s += time.monotonic() - begin
        return ready

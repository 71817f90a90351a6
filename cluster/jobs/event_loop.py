"""Where the coroutines of runs and jobs run: in the command's process, or in a notebook that has a loop already."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run`; where a loop runs already, as in a notebook, in a thread of its own.

    There Ctrl-C cancels the work, and is raised when the work has ended; a second one is raised at once.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    return _run_in_thread(work)


def _run_in_thread(work: Coroutine[Any, Any, Result]) -> Result:
    begun: Future[Callable[[], object]] = Future()

    async def call() -> Result:
        task = asyncio.current_task()
        assert task is not None, "within asyncio.run"
        loop = asyncio.get_running_loop()
        begun.set_result(partial(loop.call_soon_threadsafe, task.cancel))
        return await work

    # Leaving the pool waits for its thread.
    with ThreadPoolExecutor(1, "sightline") as pool, _Interrupts(begun) as interrupts:
        try:
            return pool.submit(asyncio.run, call()).result()
        except asyncio.CancelledError:
            if interrupts.count:
                raise KeyboardInterrupt from None
            raise


class _Interrupts:
    """Within it the first Ctrl-C cancels the work, whenever it comes. A context manager.

    It does nothing outside of the main thread, and where somebody else has to ignore Ctrl-C.

    Args:
        begun: gets what cancels the work, once that runs.
    """

    def __init__(self, begun: Future[Callable[[], object]]) -> None:
        self.count = 0
        self._begun = begun
        self._before = signal.getsignal(signal.SIGINT)
        is_main = threading.current_thread() is threading.main_thread()
        self._hears = is_main and callable(self._before)

    def __enter__(self) -> _Interrupts:
        if self._hears:
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._hears:
            signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        self._begun.add_done_callback(_cancel)


def _cancel(begun: Future[Callable[[], object]]) -> None:
    # The loop is closed where the work has just ended by itself.
    with suppress(RuntimeError):
        begun.result()()

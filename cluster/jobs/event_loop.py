"""Where the coroutines of runs and jobs run: in the command's process, or in a notebook that has a loop already."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run`; where a loop runs already, as in a notebook, in a thread of its own.

    There Ctrl-C cancels the work, and is raised when the work has ended.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    return _run_in_thread(work)


def _run_in_thread(work: Coroutine[Any, Any, Result]) -> Result:
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def call() -> Result:
        task = asyncio.current_task()
        assert task is not None, "within asyncio.run"
        begun.set_result((asyncio.get_running_loop(), task))
        return await work

    # Leaving the pool waits for its thread.
    with ThreadPoolExecutor(1, "sightline") as pool:
        result = pool.submit(asyncio.run, call())
        try:
            return result.result()
        except KeyboardInterrupt:
            loop, task = begun.result()
            # Closed where the work has just ended by itself.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
            raise

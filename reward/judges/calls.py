"""Calling code that is not ours: in a thread unless it is asynchronous, with a limit, and without raising."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call came to: `value`, or the `error` that it raised."""

    value: Any = None
    error: BaseException | None = None


async def call(function: Callable[[], Any], limit_s: float) -> Outcome:
    """Call a function and await its result if there is something to await.

    A call that takes longer than `limit_s` ends as a TimeoutError. Its thread cannot be stopped: it goes on unheard.
    """
    try:
        async with asyncio.timeout(limit_s) as limit:
            return await _call(function)
    except TimeoutError:
        # The function's own would have become an outcome.
        assert limit.expired()
        return Outcome(error=TimeoutError(f"no answer within {limit_s:g} s"))


async def _call(function: Callable[[], Any]) -> Outcome:
    outcome = await _in_thread(function)
    if not inspect.isawaitable(outcome.value):
        return outcome
    try:
        return Outcome(await outcome.value)
    # `sys.exit` in a user's code ends its call, not the worker.
    except (Exception, SystemExit) as error:
        return Outcome(error=error)


async def _in_thread(function: Callable[[], Any]) -> Outcome:
    """Call a function in a thread of its own.

    Not in a pool: its threads would be waited for when the process ends, even those that hang.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Outcome] = loop.create_future()

    def run() -> None:
        try:
            outcome = Outcome(function())
        except BaseException as error:
            outcome = Outcome(error=error)
        # The loop may have ended meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, outcome)

    def tell(outcome: Outcome) -> None:
        # Nobody waits for it any more after the limit.
        if not future.done():
            future.set_result(outcome)

    threading.Thread(target=run, name="judge", daemon=True).start()
    return await future

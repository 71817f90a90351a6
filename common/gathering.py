"""Concurrent work that is waited for to its end, whatever fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

from common.errors import UserError

T = TypeVar("T")


async def gather_whole(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """All results, in order. When some fail, the others are still waited for, so that nothing goes on behind our back.

    Raises:
        The first UserError, for no retry helps against it; else the first failure.
    """
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        # Not `return_exceptions`: a result may be an exception as well.
        await asyncio.gather(*tasks)
    except Exception:
        await asyncio.wait(tasks)
    failures: list[BaseException] = []
    for task in tasks:
        failure = task.exception()
        if failure is not None:
            failures.append(failure)
    for failure in failures:
        if isinstance(failure, UserError):
            raise failure
    if failures:
        raise failures[0]
    return [task.result() for task in tasks]

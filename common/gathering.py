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
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    for failure in failures:
        if isinstance(failure, UserError):
            raise failure
    if failures:
        raise failures[0]
    return [result for result in results if not isinstance(result, BaseException)]

"""Concurrent work that is waited for to its end."""

from __future__ import annotations

import asyncio

import pytest

from common.errors import UserError
from common.gathering import gather_whole


async def after(seconds: float, result: object, done: list[object]) -> object:
    await asyncio.sleep(seconds)
    done.append(result)
    if isinstance(result, BaseException):
        raise result
    return result


def test_results_come_in_order_and_may_be_exceptions() -> None:
    async def returned() -> object:
        return ValueError("a result")

    async def gather() -> list[object]:
        return await gather_whole([after(0.01, 1, []), after(0, 2, []), returned()])

    one, two, three = asyncio.run(gather())
    assert (one, two) == (1, 2) and isinstance(three, ValueError)
    assert asyncio.run(gather_whole([])) == []


@pytest.mark.parametrize("error", [ValueError("x"), UserError("x")])
def test_the_rest_is_waited_for(error: Exception) -> None:
    """A UserError goes before what failed earlier."""
    done: list[object] = []

    async def gather() -> None:
        early = RuntimeError("early")
        await gather_whole([after(0, early, done), after(0.02, error, done)])

    with pytest.raises(UserError if isinstance(error, UserError) else RuntimeError):
        asyncio.run(gather())
    assert len(done) == 2


def test_a_cancelled_caller_cancels_all() -> None:
    done: list[object] = []

    async def gather() -> None:
        async with asyncio.timeout(0.01):
            await gather_whole([after(0.05, 1, done), after(0.05, 2, done)])

    with pytest.raises(TimeoutError):
        asyncio.run(gather())
    assert not done

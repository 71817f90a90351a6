"""Waiting for workers, never without a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

from common.errors import UserError


async def answer(
    reference: Awaitable[Any],
    limit_s: float,
    peer: str,
) -> Any:
    """What the peer answers (UserError that names it when it takes longer than `limit_s`)."""
    try:
        async with asyncio.timeout(limit_s):
            return await reference
    except TimeoutError as error:
        # Also a TimeoutError of the worker's own: it did not answer either.
        raise UserError(
            f"{peer}: got no answer within {limit_s:g} s; look at its log, or raise loop.call_timeout_s"
        ) from error


async def answers(
    references: Sequence[Awaitable[Any]],
    limit_s: float,
    peer: str,
) -> list[Any]:
    """All answers, in order; the first failure is raised."""
    return list(await answer(asyncio.gather(*references), limit_s, peer))

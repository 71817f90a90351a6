"""Concurrent tasks over one queue of work: either all come to its end, or the first error stops the others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any


async def run_all(coroutines: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all to their end. The first error cancels the others, and is raised once they have stopped."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        # A cancelled task may still have something to clean up.
        await asyncio.gather(*tasks, return_exceptions=True)

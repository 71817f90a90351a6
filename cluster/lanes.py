"""Coroutines that share one queue of work: either all come to its end, or the first error stops the others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any


async def all_or_first_error(lanes: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run to the end of all; the first error stops the others before it is raised."""
    tasks = [asyncio.create_task(lane) for lane in lanes]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""Long lists of work for a worker, in calls of a size that shows progress."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

CHUNK = 64
"""Items per call of a worker: enough to fill its engine, few enough to see progress."""

Item = TypeVar("Item")
Result = TypeVar("Result")
OnProgress: TypeAlias = Callable[[int], None]
"""Called with the number of items done since the last call."""


def ignore_progress(_: int) -> None:
    """For callers without a progress bar."""


async def in_chunks(
    call: Callable[[Sequence[Item]], Awaitable[list[Result]]],
    items: Sequence[Item],
    on_progress: OnProgress = ignore_progress,
) -> list[Result]:
    """One result per item, in order; `CHUNK` items per call."""
    results: list[Result] = []
    for start in range(0, len(items), CHUNK):
        end = start + CHUNK
        chunk = items[start:end]
        # One after the other: the worker's engine is full with one chunk.
        results += await call(chunk)
        on_progress(len(chunk))
    return results

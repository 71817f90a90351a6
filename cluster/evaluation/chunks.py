"""Long lists of work for several workers, in calls of a size that shows progress and that a resume can skip."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol, TypeAlias, TypeVar

CHUNK = 64
"""Items per call of a worker: enough to fill its engine, few enough to see progress."""

Item = TypeVar("Item")
Result = TypeVar("Result")
OnProgress: TypeAlias = Callable[[int], None]
"""Called with the number of items done since the last call."""


class KeptResults(Protocol[Result]):
    """Where results outlive the process, by the index of their chunk's first item."""

    def get(self, start: int, count: int) -> list[Result] | None:
        """The `count` results that were put there, None when there are none."""
        ...

    def put(self, start: int, results: Sequence[Result]) -> None: ...


def ignore_progress(_: int) -> None:
    """For callers without a progress bar."""


async def in_chunks(
    calls: Sequence[Callable[[Sequence[Item]], Awaitable[list[Result]]]],
    items: Sequence[Item],
    on_progress: OnProgress = ignore_progress,
    kept: KeptResults[Result] | None = None,
) -> list[Result]:
    """One result per item, in order; `CHUNK` items per call.

    Args:
        calls: one per worker. A worker gets the next chunk when it is done with its last one, as one fills its engine.
        items: of all chunks.
        on_progress: hears of kept results as well.
        kept: chunks that are there are not asked again.
    """
    results: dict[int, list[Result]] = {}
    starts = iter(range(0, len(items), CHUNK))

    async def work(call: Callable[[Sequence[Item]], Awaitable[list[Result]]]) -> None:
        # All workers take from one iterator, so every chunk is asked once.
        for start in starts:
            chunk = items[start : start + CHUNK]
            answers = kept.get(start, len(chunk)) if kept else None
            if answers is None:
                answers = await call(chunk)
                if kept:
                    kept.put(start, answers)
            results[start] = answers
            on_progress(len(chunk))

    try:
        async with asyncio.TaskGroup() as tasks:
            for call in calls:
                tasks.create_task(work(call))
    except BaseExceptionGroup as group:
        # Users read one line; the group stays as its cause.
        raise group.exceptions[0] from group
    return list(_in_order(results))


def _in_order(results: dict[int, list[Result]]) -> Iterator[Result]:
    for start in sorted(results):
        yield from results[start]

"""Weights on their way; what becomes of them in whole runs is in test_overlap.py."""

from __future__ import annotations

import asyncio
from typing import Any

from cluster.run.arrivals import Arrivals


class SilentWeights:
    """Engines that never answer."""

    async def publish(self, version: int, sent: Any) -> Any:
        await asyncio.Event().wait()


def other_tasks() -> set[asyncio.Task[Any]]:
    """All that have not ended, without the one that asks."""
    return asyncio.all_tasks() - {asyncio.current_task()}


def test_a_send_that_is_given_up_leaves_nothing_but_a_task_of_the_run() -> None:
    weights: Any = SilentWeights()
    unused: Any = None

    async def scenario() -> None:
        async with asyncio.TaskGroup() as tasks:
            arrivals = Arrivals(tasks, weights, unused, unused, unused, overlaps=True)
            sending = asyncio.create_task(arrivals.send(1))
            await asyncio.sleep(0.01)
            sending.cancel()
            await asyncio.wait([sending])
            assert sending.cancelled()
            # What was cancelled ends in its next turn.
            await asyncio.sleep(0)
            left = other_tasks()
            assert len(left) == 1
            # A task of the run: the group waits until it has ended.
            left.pop().cancel()
        assert other_tasks() == set()

    asyncio.run(scenario())

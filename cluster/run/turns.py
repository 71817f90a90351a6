"""Whose turn it is on GPUs that engines and learner share (`cluster.placement = colocated`).

    engines' turn    sample, validate, load weights                     the learner waits for its batch
    learner's turn   step, and gather weights for a publish             engines sleep, calls to them wait
    then             engines wake with empty caches, take the weights   and sample on

With GPUs of their own both work at once, and nothing here waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from cluster.runtime.clients import RolloutClient, Workers
from cluster.supervision.seat import WorkerLost
from common.config import Cluster


class Turns:
    """The engines begin."""

    def __init__(self, config: Cluster, workers: Workers) -> None:
        self._are_taken = config.placement == "colocated"
        self._level = config.sleep_level
        self._engines = workers.rollout
        self._learner = workers.learner
        self._engines_turn = True
        self._asleep = False
        self._num_calls = 0
        self._changed = asyncio.Condition()

    @property
    def are_asleep(self) -> bool:
        """Whether the engines sleep."""
        return self._asleep

    def sampling(self) -> AbstractAsyncContextManager[None]:
        """Around every call to an engine beside the loop: waits until it is the engines' turn."""
        return self._call_when(lambda: self._engines_turn)

    def starting(self) -> AbstractAsyncContextManager[None]:
        """Around the start of an engine in the place of one that died: not while the learner works.

        Calls to the dead engine wait for this one, and the learner's turn waits for them: so this may begin while the
        turn is about to be passed.
        """
        return self._call_when(lambda: not self._asleep)

    @asynccontextmanager
    async def _call_when(self, may_begin: Callable[[], bool]) -> AsyncIterator[None]:
        """A call that the learner's turn waits for."""
        async with self._changed:
            while not may_begin():
                await self._changed.wait()
            self._num_calls += 1
        try:
            yield
        finally:
            async with self._changed:
                self._num_calls -= 1
                self._changed.notify_all()

    async def pass_to_learner(self) -> None:
        """Let the engines end what they sample, and put them to sleep."""
        if not self._are_taken:
            return
        async with self._changed:
            self._engines_turn = False
            while self._num_calls:
                await self._changed.wait()
            self._asleep = True
        await asyncio.gather(*[self._sleep(engine) for engine in self._engines])

    async def wake(self) -> None:
        """Wake the engines to load weights, once the ranks have gathered them; nothing is sampled yet."""
        if self._asleep:
            await self._learner.rest()
            await asyncio.gather(*[self._wake(engine) for engine in self._engines])
            async with self._changed:
                self._asleep = False
                self._changed.notify_all()

    async def pass_to_engines(self) -> None:
        """Wake the engines, where they sleep, and let sampling go on."""
        await self.wake()
        async with self._changed:
            self._engines_turn = True
            self._changed.notify_all()

    async def _sleep(self, engine: RolloutClient) -> None:
        # One that is lost holds no memory.
        with suppress(WorkerLost):
            await engine.sleep(self._level)

    async def _wake(self, engine: RolloutClient) -> None:
        with suppress(WorkerLost):
            await engine.wake()

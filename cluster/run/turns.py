"""Whose turn it is on GPUs that engines and learner share (`cluster.placement = colocated`).

    engines' turn    sample, validate, load weights                     the learner waits for its batch
    learner's turn   step, and gather weights for a publish             engines sleep, calls to them wait
    then             engines wake with empty caches, take the weights   and sample on

An engine that takes the place of a lost one starts while the others are awake. New ranks start while all sleep.

With GPUs of their own both work at once, and nothing here waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TypeAlias

from cluster.runtime.clients import RolloutClient, Workers
from cluster.supervision.seat import WorkerLost
from common.config import Cluster

log = logging.getLogger("sightline")

KEEPING = 1
"""The level of vLLM's sleep that keeps the weights."""

Tell: TypeAlias = Callable[[RolloutClient], Awaitable[None]]


class Turns:
    """The engines begin. Outlives the loops of a run, as the engines do.

    Attributes:
        are_taken: whether engines and learner share GPUs.
    """

    def __init__(self, config: Cluster, workers: Workers) -> None:
        self.are_taken = config.placement == "colocated"
        self._level = config.sleep_level
        self._engines = workers.rollout
        self._learner = workers.learner
        # Engines whose seats do not know them yet.
        self._newcomers: list[RolloutClient] = []
        self._engines_turn = True
        self._asleep = False
        self._num_calls = 0
        # Set at the next change, and then another one. No lock: whoever is cancelled must still be able to leave.
        self._change = asyncio.Event()

    def sampling(self) -> AbstractAsyncContextManager[None]:
        """Around every call to an engine beside the loop: waits until it is the engines' turn."""
        return self._call_when(lambda: self._engines_turn)

    def starting(self) -> AbstractAsyncContextManager[None]:
        """Around whatever an engine does that takes the place of a lost one: not while the learner works.

        Calls to the lost engine wait for this one, and the learner's turn waits for them: so this may begin while the
        turn is about to be passed.
        """
        return self._call_when(lambda: not self._asleep)

    @contextmanager
    def newcomer(self, engine: RolloutClient) -> Iterator[None]:
        """From its start until its seat is up an engine sleeps and wakes by this client."""
        self._newcomers.append(engine)
        try:
            yield
        finally:
            self._newcomers.remove(engine)

    @asynccontextmanager
    async def learner_starting(self) -> AsyncIterator[None]:
        """Around the start of ranks in the place of lost ones. Then the engines begin again, as in a new run.

        Where the ranks do not come up the engines sleep on, until others do.
        """
        await self._fall_asleep(KEEPING)
        yield
        await self.pass_to_engines()

    async def pass_to_learner(self) -> None:
        """Let the engines end what they sample, and put them to sleep."""
        await self._fall_asleep(self._level)

    async def wake(self) -> None:
        """Wake the engines to load weights, once the ranks have gathered them; nothing is sampled yet."""
        if self._asleep:
            await self._learner.rest()
            # Before they are: if this is cancelled, what was sent to them is still done.
            self._asleep = False
            self._note_change()
            await self._tell_all(lambda engine: engine.wake())

    async def pass_to_engines(self) -> None:
        """Wake the engines, where they sleep, and let sampling go on."""
        await self.wake()
        self._engines_turn = True
        self._note_change()

    async def _fall_asleep(self, level: int) -> None:
        """Put the engines to sleep once no call to them is left, unless they sleep already."""
        if not self.are_taken:
            return
        self._engines_turn = False
        await self._until(lambda: not self._num_calls)
        if not self._asleep:
            self._asleep = True
            await self._tell_all(lambda engine: self._sleep(engine, level))

    async def _sleep(self, engine: RolloutClient, level: int) -> None:
        # A newcomer is measured by the weights that it came with.
        await engine.sleep(KEEPING if engine in self._newcomers else level)

    async def _tell_all(self, tell: Tell) -> None:
        engines = [*self._engines, *self._newcomers]
        await asyncio.gather(*[self._tell(engine, tell) for engine in engines])

    async def _tell(self, engine: RolloutClient, tell: Tell) -> None:
        is_new = engine in self._newcomers
        try:
            await tell(engine)
        except WorkerLost:
            # One that is lost holds no memory.
            return
        except Exception as error:
            if not is_new:
                raise
            # Who revives it hears of it, too.
            log.warning("an engine is lost while it starts: %s", error)

    @asynccontextmanager
    async def _call_when(self, may_begin: Callable[[], bool]) -> AsyncIterator[None]:
        """A call that the learner's turn waits for."""
        await self._until(may_begin)
        self._num_calls += 1
        try:
            yield
        finally:
            self._num_calls -= 1
            self._note_change()

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await self._change.wait()

    def _note_change(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

"""Which weights the engines of a run hold, and how an engine that was restarted gets them.

    START     all hold the start policy, as a new engine does
    EXACT     the learner holds what was published last: it can be sent again
    AHEAD     the learner has trained since it published
    UNKNOWN   the learner itself is being restarted

An engine that comes back waits while the learner steps. Where the learner is ahead it is taken along by the next
publish. If no other engine is up that would never come, and where both share GPUs the learner would wait for the
engine: it then gets the newer weights under the published version. A deterministic run goes back to its last checkpoint
instead, and makes them again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from enum import Enum, auto

from cluster.run.turns import Turns
from cluster.runtime.clients import RolloutClient
from cluster.supervision.seat import WorkerLost
from cluster.weights.transport import Delivered, WeightTransport
from common.records import LogprobProbe, ProbeReading

log = logging.getLogger("sightline")


class Standing(Enum):
    """What the learner holds, compared with the engines."""

    START = auto()
    EXACT = auto()
    AHEAD = auto()
    UNKNOWN = auto()


class EngineWeights:
    """Outlives the loops of a run: a learner that is restarted gets a new one."""

    def __init__(
        self,
        engines: Sequence[RolloutClient],
        transport: WeightTransport,
        turns: Turns,
        go_back: Callable[[], None] | None = None,
    ) -> None:
        """Begin with the start policy.

        Args:
            transport: the way of weights from the learner.
            go_back: makes a deterministic run go back to its last checkpoint.
        """
        self._engines = engines
        self._transport = transport
        self._turns = turns
        self._go_back = go_back
        self._start: LogprobProbe | None = None
        # Of the learner's start policy, once it was pushed as version 0.
        self._proven_start: ProbeReading | None = None
        self._version = 0
        self._standing = Standing.START
        # Held while the learner's weights change or travel.
        self._moving = asyncio.Lock()
        self._num_changes = 0
        # Cleared while engines load, which the learner does not wait for.
        self._settled = asyncio.Event()
        self._settled.set()
        self._late: list[tuple[RolloutClient, asyncio.Future[None]]] = []

    async def calibrate(self, start: LogprobProbe) -> list[ProbeReading]:
        """How far engines and learner are apart, while all hold the start policy; later ones are measured as they come.

        Args:
            start: the learner's probe of the start policy.

        Raises:
            Exception: an engine's that is well but holds another model.
        """
        self._start = start
        calls = [engine.calibrate(start) for engine in self._engines if engine.is_up]
        readings: list[ProbeReading] = []
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(outcome, ProbeReading):
                readings.append(outcome)
            elif not isinstance(outcome, WorkerLost):
                raise outcome
        return readings

    @property
    def are_unknown(self) -> bool:
        """Whether the learner was lost, and nothing is published since."""
        return self._standing is Standing.UNKNOWN

    def forget_learner(self) -> None:
        """The learner is lost; engines that come back wait for the first publish of the next one."""
        self._standing = Standing.UNKNOWN

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Around a learner step and the publish that follows it, if one does."""
        async with self._moving:
            self._num_changes += 1
            if self._standing is Standing.EXACT:
                self._standing = Standing.AHEAD
            yield

    async def publish(
        self, version: int, sent: Callable[[], None] = lambda: None
    ) -> Delivered:
        """Bring the learner's weights to all engines that are up, and to those that wait; begun inside `changing`.

        Args:
            sent: called when the learner can go on; `changing` may then end, and the next one begin.

        Raises:
            Exception: an engine's that is well but does not take them, or the learner's.
        """
        self._settled.clear()
        try:
            return await self._publish(version, sent)
        finally:
            self._settled.set()

    async def _publish(self, version: int, sent: Callable[[], None]) -> Delivered:
        num_changes = self._num_changes
        # Some of them were lost while they waited.
        self._late = [entry for entry in self._late if not entry[1].done()]
        late = tuple(self._late)
        up = [engine for engine in self._engines if engine.is_up]
        engines = up + [engine for engine, _ in late]
        delivered = await self._deliver(version, engines, sent)
        del self._late[: len(late)]
        self._version = version
        if version == 0 and delivered.reports:
            self._proven_start = delivered.reports[0].probe
        # The learner may have gone on meanwhile.
        is_exact = self._num_changes == num_changes
        self._standing = Standing.EXACT if is_exact else Standing.AHEAD
        failed = dict(delivered.failures)
        for engine, waiter in late:
            if waiter.done():
                continue
            if engine in failed:
                waiter.set_exception(failed[engine])
            else:
                waiter.set_result(None)
        for engine, error in delivered.failures:
            if engine in up and not isinstance(error, WorkerLost):
                raise error
        return delivered

    async def catch_up(self, engine: RolloutClient) -> None:
        """Bring an engine that has just started to what the others hold.

        Raises:
            Exception: it does not take the weights.
        """
        async with self._turns.starting():
            if self._start is not None:
                await engine.calibrate(self._start, self._proven_start)
            waiter = await self._send_or_wait(engine)
        # Not in its turn: the learner that publishes next may have to start first.
        if waiter is not None:
            await waiter

    async def _send_or_wait(self, engine: RolloutClient) -> asyncio.Future[None] | None:
        """Bring an engine what the others hold, or let it wait for the next publish, which ends the future."""
        delivered: Delivered | None = None
        async with self._moving:
            await self._settled.wait()
            if self._standing is Standing.START:
                return None
            must_not_wait = self._must_not_wait()
            if must_not_wait and self._go_back is not None:
                self._go_back()
            elif must_not_wait or self._standing is Standing.EXACT:
                try:
                    delivered = await self._deliver(self._version, [engine])
                except Exception as error:
                    # The learner's; if it is lost just now, its next one will publish.
                    log.warning("weights %d were not sent: %s", self._version, error)
            if delivered is not None:
                delivered.check()
                return None
            waiter = asyncio.get_running_loop().create_future()
            self._late.append((engine, waiter))
            return waiter

    def _must_not_wait(self) -> bool:
        """Whether no publish will come: the learner waits for this engine, or for pairs that nobody else samples."""
        others = any(engine.is_up for engine in self._engines)
        in_turns = self._turns.are_taken
        return self._standing is Standing.AHEAD and (in_turns or not others)

    async def _deliver(
        self,
        version: int,
        engines: Sequence[RolloutClient],
        sent: Callable[[], None] = lambda: None,
    ) -> Delivered:
        delivered = await self._transport.deliver(version, engines, sent)
        assert delivered.manifest.version == version
        assert all(report.version == version for report in delivered.reports)
        return delivered

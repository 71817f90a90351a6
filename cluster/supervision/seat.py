"""The place of one worker in a run, who may be replaced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Protocol, TypeAlias

from cluster.runtime.waiting import answer
from cluster.supervision.heartbeat import fault_of
from common.errors import RunFailed
from common.protocols import Handle, Pulse

ANYWHERE = frozenset(("generate", "bdhs_pairs", "score", "encode", "rank", "judge"))
"""Methods that change nothing in a worker: when it is lost, another one of its kind is asked the same."""

Spawn: TypeAlias = Callable[[], Handle]
Revive: TypeAlias = Callable[[Handle], Awaitable[None]]


class WorkerLost(RunFailed):
    """A worker died or hangs, and what it was asked has no answer."""

    def __init__(self, seat: Seat) -> None:
        super().__init__(seat.fate)
        self.name = seat.name


class Watch(Protocol):
    """What a seat needs of its supervisor.

    Attributes:
        limit_s: how long a worker may say nothing.
    """

    limit_s: float

    def lose(self, seat: Seat, number: int, cause: str) -> None:
        """The worker of this number is lost."""
        ...

    async def available(self, seat: Seat) -> Seat:
        """This seat, or another of its kind while nobody sits here."""
        ...


class Seat:
    """A Handle whose calls go to the worker that sits here now.

    Attributes:
        handle: of that worker.
        number: of workers that sat here before it.
        cause: why the last one was lost.
        last_pulse: of the present worker.
        revive: brings a new worker to where it may be asked; None when others do that.
        leans_on: seats whose workers this one asks itself, in pools; of each it needs one.
        start_s: seconds from the spawning of the last worker who was started by a client until that was done.
    """

    def __init__(
        self,
        name: str,
        spawn: Spawn,
        watch: Watch,
        revive: Revive | None = None,
        leans_on: Sequence[Sequence[Seat]] = (),
    ) -> None:
        self.name = name
        self.revive = revive
        self.leans_on = leans_on
        self.number = 0
        self.cause = ""
        self.last_pulse: Pulse | None = None
        self.start_s = 0.0
        self._spawn = spawn
        self._watch = watch
        self._down = asyncio.Event()
        self._spawned = time.monotonic()
        self.handle = spawn()

    @property
    def kind(self) -> str:
        """`rollout` of `rollout/3`."""
        return self.name.partition("/")[0]

    @property
    def is_up(self) -> bool:
        """Whether its worker may be asked."""
        return not self._down.is_set()

    def go_down(self, cause: str) -> None:
        """Nobody sits here, for this reason."""
        self.cause = cause
        self._down.set()

    def go_up(self) -> None:
        """Its worker may be asked."""
        self._down.clear()

    async def until_down(self) -> None:
        """Wait until nobody sits here."""
        await self._down.wait()

    @property
    def is_usable(self) -> bool:
        """Whether it may be asked, and of every pool somebody whom it asks."""
        return self.is_up and all(map(_is_any_up, self.leans_on))

    @property
    def log(self) -> str:
        """`HOST:PATH` of what its worker writes; "" where that is not known."""
        pulse = self.last_pulse
        if pulse is None or not pulse.log:
            return ""
        return f"{pulse.host}:{pulse.log}"

    @property
    def fate(self) -> str:
        """Who was lost, why, and where its log is, in one line."""
        where = f" (log: {self.log})" if self.log else ""
        return f"{self.name}: {self.cause}{where}"

    def refill(self) -> Handle:
        """Put a new worker here, which may not be asked yet."""
        self._spawned = time.monotonic()
        self.handle = self._spawn()
        self.number += 1
        self.last_pulse = None
        return self.handle

    def note_start(self) -> None:
        """The worker that sits here has just started."""
        self.start_s = time.monotonic() - self._spawned

    def note(self, pulse: Pulse) -> None:
        """Remember a pulse of the worker that sits here."""
        self.last_pulse = pulse

    def call(self, method: str, *args: Any) -> Awaitable[Any]:
        return self.handle.call(method, *args)

    def call_split(
        self, method: str, num_returns: int, *args: Any
    ) -> Sequence[Awaitable[Any]]:
        return self.handle.call_split(method, num_returns, *args)

    def pulse(self) -> Awaitable[Pulse]:
        return self.handle.pulse()

    def death(self, error: BaseException) -> str | None:
        return self.handle.death(error)

    async def ask(
        self, method: str, args: Sequence[Any], limit_s: float, peer: str
    ) -> Any:
        """The answer to a call; of another worker of this kind, or of the next one here, when this one is lost.

        Raises:
            WorkerLost: what was asked concerns the lost worker alone.
        """
        if method not in ANYWHERE:
            return await self._ask_here(method, args, limit_s, peer)
        while True:
            seat = await self._watch.available(self)
            try:
                return await seat._ask_here(method, args, limit_s, peer)
            except WorkerLost:
                continue

    async def _ask_here(
        self, method: str, args: Sequence[Any], limit_s: float, peer: str
    ) -> Any:
        number = self.number
        if not self.is_up:
            raise WorkerLost(self)
        try:
            return await answer(self.handle.call(method, *args), limit_s, peer)
        except Exception as error:
            if await self._is_lost(error, number):
                raise WorkerLost(self) from error
            raise

    async def _is_lost(self, error: BaseException, number: int) -> bool:
        """Whether a call failed because the worker of this number is lost, or one that it asked itself."""
        if number != self.number or not self.is_up:
            return True
        cause = self.handle.death(error) or await self.fault()
        if cause:
            self._watch.lose(self, number, cause)
            return True
        for seat in chain.from_iterable(self.leans_on):
            if await seat._is_lost(error, seat.number):
                return True
        return False

    def give_up(self, cause: str) -> WorkerLost:
        """Treat the worker that sits here as lost, for a cause that only its caller knows."""
        self._watch.lose(self, self.number, cause)
        return WorkerLost(self)

    async def fault(self) -> str:
        """What is wrong with the worker that sits here; "" when nothing is."""
        return await fault_of(self.handle, self._watch.limit_s, self.note)


def _is_any_up(pool: Iterable[Seat]) -> bool:
    return any(seat.is_up for seat in pool)

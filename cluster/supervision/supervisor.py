"""Replaces the workers of a run that die or hang, while the others go on.

    watching     a heartbeat per seat ──fault──▶ lose
    a call       fails, and its worker has no pulse ──▶ lose
    lose         the seat is down: its calls go to others of its kind, or wait
    then         budget and pause ─▶ bury what is left ─▶ another worker, started as the first ─▶ revive ─▶ up

Ranks of the learner are not revived one by one: all go back to the last checkpoint, see `cluster/run/experiment.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from cluster.supervision.heartbeat import first_fault, pulse_within
from cluster.supervision.restarts import Restarts
from cluster.supervision.roster import write_roster
from cluster.supervision.seat import Revive, Seat, Spawn, WorkerLost
from common.errors import RunFailed, plain_message
from common.protocols import Handle, Runtime

log = logging.getLogger("sightline")


class Diary(Protocol):
    """Where restarts are written down."""

    def restart(self, name: str, cause: str, log: str, seconds: float) -> None: ...


class Supervisor:
    """Owns the seats of a run.

    Attributes:
        seats: by name.
    """

    def __init__(
        self,
        runtime: Runtime,
        restarts: Restarts,
        limit_s: float,
        start_limit_s: float,
        diary: Diary,
        folder: Path,
    ) -> None:
        """Supervise workers.

        Args:
            limit_s: how long a worker may say nothing.
            start_limit_s: how long its process may take to start.
            folder: takes the roster.
        """
        self.limit_s = limit_s
        self._start_limit_s = start_limit_s
        self._runtime = runtime
        self._restarts = restarts
        self._diary = diary
        self._folder = folder
        self.seats: dict[str, Seat] = {}
        self._is_watching = False
        # By seat: its heartbeat, and what puts another worker there.
        self._heartbeats: dict[Seat, asyncio.Task[None]] = {}
        self._replacing: dict[Seat, asyncio.Task[None]] = {}
        self._failure: RunFailed | None = None
        self._num_redirected = 0
        # Notified whenever a seat is up again, or none ever will be.
        self._changed = asyncio.Condition()

    def seat(
        self,
        name: str,
        spawn: Spawn,
        revive: Revive | None = None,
        leans_on: Sequence[Sequence[Seat]] = (),
    ) -> Seat:
        """Spawn a worker and give it a seat; the seat of an earlier worker of that name was closed."""
        assert name not in self.seats
        seat = self.seats[name] = Seat(name, spawn, self, revive, leans_on)
        if self._is_watching:
            self._heartbeats[seat] = asyncio.create_task(self._watch(seat))
        return seat

    def close(self, handle: Handle) -> None:
        """Stop the worker of a seat for good."""
        assert isinstance(handle, Seat)
        del self.seats[handle.name]
        self._end_tasks_of(handle)
        handle.go_down("it was stopped")
        # One that was lost is stopped already.
        with suppress(RuntimeError):
            self._runtime.stop(handle.handle)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Within it the workers, who have started, are watched and replaced."""
        await self.look()
        self._is_watching = True
        for seat in self.seats.values():
            self._heartbeats[seat] = asyncio.create_task(self._watch(seat))
        try:
            yield
        finally:
            self._is_watching = False
            for seat in list(self.seats.values()):
                self._end_tasks_of(seat)

    async def look(self) -> None:
        """Ask all for their pulse, and write down who runs where."""
        await asyncio.gather(*[seat.fault() for seat in self.seats.values()])
        self._write_roster()

    def start_seconds(self) -> dict[str, float]:
        """How long every worker took to start, by name; it could be asked then."""
        seconds: dict[str, float] = {}
        for seat in self.seats.values():
            seconds[seat.name] = round(seat.start_s, 3)
        return seconds

    def lose(self, seat: Seat, number: int, cause: str) -> None:
        """The worker of this number is lost; again does nothing."""
        if number != seat.number or not seat.is_up:
            return
        seat.go_down(cause)
        if seat.revive is not None:
            work = self._or_give_up(seat, partial(self._replace, seat))
        else:
            # Whoever waits for it hears at once that it is gone.
            work = self._bury(seat)
        self._replacing[seat] = asyncio.create_task(work)

    async def available(self, seat: Seat) -> Seat:
        """This seat, or another of its kind while nobody sits here.

        Raises:
            RunFailed: no worker may be restarted any more.
        """
        while True:
            if self._failure is not None:
                raise self._failure
            if seat.is_usable:
                return seat
            kind = [other for other in self.seats.values() if other.kind == seat.kind]
            usable = [other for other in kind if other.is_usable]
            if usable:
                self._num_redirected += 1
                return usable[self._num_redirected % len(usable)]
            async with self._changed:
                await self._changed.wait()

    async def lost(self, seats: Sequence[Seat]) -> Seat | None:
        """The first of these whose worker is lost, after a look at all of them."""
        up = [seat for seat in seats if seat.is_up]
        faults = await asyncio.gather(*[seat.fault() for seat in up])
        for seat, fault in zip(up, faults, strict=True):
            if fault:
                # Its heartbeat may have said so meanwhile.
                self.lose(seat, seat.number, fault)
        for seat in seats:
            if not seat.is_up:
                return seat
        return None

    async def refill(self, seats: Sequence[Seat]) -> None:
        """Put new workers into all of these seats, one of which is lost; who calls starts them.

        Raises:
            RunFailed: the budget of restarts is used up.
            WorkerLost: one of them did not come up.
        """
        lost = next(seat for seat in seats if not seat.is_up)
        pause_s = self._grant(lost)
        burials = []
        for seat in seats:
            seat.go_down(lost.cause)
            burials.append(self._runtime.bury(seat.handle, seat.last_pulse))
        await asyncio.gather(*burials)
        await asyncio.sleep(pause_s)
        for seat in seats:
            await self._runtime.make_room(seat.name)
        for seat in seats:
            seat.refill()
        # All at once: each takes as long as a process does to start.
        await asyncio.gather(*[self._await_process(seat) for seat in seats])
        # One that hangs from here on is noticed, too.
        for seat in seats:
            seat.go_up()
            await self._announce(seat)

    async def _announce(self, seat: Seat) -> None:
        """Tell those who wait that a seat is up, and write down who sits there."""
        async with self._changed:
            self._changed.notify_all()
        await seat.fault()
        self._write_roster()

    def _write_roster(self) -> None:
        write_roster(self._folder, self.seats.values())

    async def renew(self, seat: Seat) -> None:
        """Replace a worker that is well, or is just being started, because those that it asks are others now.

        Once begun it goes on, also when who asked for it is cancelled.
        """
        before = self._replacing.get(seat)
        renewing = self._or_give_up(
            seat, partial(self._renew, seat, seat.number, before)
        )
        task = self._replacing[seat] = asyncio.create_task(renewing)
        await asyncio.shield(task)

    async def _renew(
        self, seat: Seat, number: int, before: asyncio.Task[None] | None
    ) -> None:
        """Renew the worker of this number, behind the task that has put it there."""
        if before is not None:
            await before
        if seat.number != number:
            # Its successor was made when the others were there already.
            return
        seat.go_down("it is renewed")
        await self._runtime.bury(seat.handle, seat.last_pulse)
        if await self._bring_up(seat):
            await self._announce(seat)
        else:
            await self._replace(seat)

    async def _watch(self, seat: Seat) -> None:
        while True:
            if seat.is_up:
                number = seat.number
                self.lose(seat, number, await self._first_fault(seat))
            async with self._changed:
                await self._changed.wait_for(lambda: seat.is_up)

    async def _first_fault(self, seat: Seat) -> str:
        """Wait until something is wrong with the worker of a seat; returns what."""
        if seat.last_pulse is None:
            # As of an engine of the final policy, whose process may still be starting.
            fault = await self._start_fault(seat)
            if fault:
                return fault
        return await first_fault(seat.handle, self.limit_s, seat.note)

    async def _or_give_up(
        self, seat: Seat, bring_back: Callable[[], Awaitable[None]]
    ) -> None:
        """Bring a worker back, or end the run with the reason why nobody can: no other task would hear of it."""
        try:
            await bring_back()
        except RunFailed as failure:
            await self._give_up(failure)
        except Exception as error:
            why = plain_message(error) or type(error).__name__
            told = RunFailed(f"{seat.fate}; it cannot be replaced: {why}")
            told.__cause__ = error
            await self._give_up(told)

    async def _replace(self, seat: Seat) -> None:
        """Put another worker into a seat, again until one is well.

        Raises:
            RunFailed: the budget of restarts is used up.
        """
        begun = time.monotonic()
        cause, output = seat.cause, seat.log
        is_well = False
        while not is_well:
            pause_s = self._grant(seat)
            await self._runtime.bury(seat.handle, seat.last_pulse)
            await asyncio.sleep(pause_s)
            is_well = await self._bring_up(seat)
        seconds = time.monotonic() - begun
        log.warning("%s is back after %.1f s", seat.name, seconds)
        # Who waits for it comes first: the diary's disk may be full.
        await self._announce(seat)
        try:
            self._diary.restart(seat.name, cause, output, seconds)
        except OSError as error:
            raise RunFailed(
                f"{seat.name} is back, but the journal cannot be written: {error}; make room, and go on with --resume"
            ) from error

    async def _bring_up(self, seat: Seat) -> bool:
        """Start another worker, as the first one was; False when it did not come up, whose cause the seat then has."""
        handle = seat.handle
        try:
            await self._runtime.make_room(seat.name)
            handle = seat.refill()
            await self._await_process(seat)
            seat.cause = await self._revive(seat, handle)
        except WorkerLost:
            # Its seat has the cause.
            return False
        except Exception as error:
            seat.cause = handle.death(error) or plain_message(error)
        return not seat.cause

    async def _await_process(self, seat: Seat) -> None:
        """Wait for the first pulse of a new worker; WorkerLost when it does not come."""
        fault = await self._start_fault(seat)
        if fault:
            seat.cause = fault
            raise WorkerLost(seat)

    async def _start_fault(self, seat: Seat) -> str:
        """Wait for the first pulse of a worker; returns why it did not come, or ""."""
        handle = seat.handle
        try:
            seat.note(await pulse_within(handle, self._start_limit_s))
        except TimeoutError:
            return f"its process did not start within {self._start_limit_s:g} s"
        except Exception as error:
            return handle.death(error) or plain_message(error)
        return ""

    async def _revive(self, seat: Seat, handle: Handle) -> str:
        """Bring a new worker to where it may be asked; returns why it hangs or has died meanwhile, or ""."""
        revival = asyncio.create_task(_revive_and_go_up(seat, handle))
        watch = asyncio.create_task(first_fault(handle, self.limit_s, seat.note))
        try:
            await asyncio.wait({revival, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not revival.done():
                return watch.result()
            await revival
            return ""
        finally:
            revival.cancel()
            watch.cancel()

    async def _bury(self, seat: Seat) -> None:
        try:
            await self._runtime.bury(seat.handle, seat.last_pulse)
        except Exception as error:
            # Who puts another worker there tries it again.
            log.warning("%s could not be stopped: %s", seat.name, plain_message(error))

    def _grant(self, seat: Seat) -> float:
        if not self._is_watching:
            raise RunFailed(seat.fate)
        pause_s = self._restarts.grant(seat.name, seat.fate)
        log.warning("%s; restarting it", seat.fate)
        return pause_s

    async def _give_up(self, failure: RunFailed) -> None:
        self._failure = failure
        async with self._changed:
            self._changed.notify_all()

    def _end_tasks_of(self, seat: Seat) -> None:
        for tasks in (self._heartbeats, self._replacing):
            task = tasks.pop(seat, None)
            if task is not None:
                task.cancel()


async def _revive_and_go_up(seat: Seat, handle: Handle) -> None:
    assert seat.revive is not None
    await seat.revive(handle)
    # Nothing is awaited in between: it is up before the next publish asks who is.
    seat.go_up()

"""What a supervisor owes to those who wait for a seat, also where its own work fails or is no longer asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from cluster.supervision.restarts import Restarts
from cluster.supervision.seat import Revive, Seat
from cluster.supervision.supervisor import Supervisor
from common.errors import RunFailed
from common.protocols import Handle, Pulse
from tests.fakes.runtime import LocalHandle, LocalRuntime

pytestmark = pytest.mark.usefixtures("short_pauses")

LIMIT_S = 0.2
START_LIMIT_S = 2.0


class Worker:
    """Answers; its process needs `start_s` before anything of it is heard."""

    start_s = 0.0

    def __init__(self) -> None:
        self.is_here = False

    def rank(self) -> str:
        return "ranked"

    async def pulse(self) -> Pulse:
        if not self.is_here:
            await asyncio.sleep(self.start_s)
        self.is_here = True
        return Pulse("here", "", ())


class Diary:
    """Keeps the names of who was restarted; `fault` is raised instead."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.names: list[str] = []
        self.fault = fault

    def restart(self, name: str, cause: str, log: str, seconds: float) -> None:
        if self.fault is not None:
            raise self.fault
        self.names.append(name)


class World:
    """A supervisor, and seats of workers in this process."""

    def __init__(
        self,
        folder: Path,
        runtime: LocalRuntime | None = None,
        diary: Diary | None = None,
    ) -> None:
        self.spawned: list[LocalHandle] = []
        self.diary = diary or Diary()
        self.supervisor = Supervisor(
            runtime or LocalRuntime(),
            Restarts(9),
            LIMIT_S,
            START_LIMIT_S,
            self.diary,
            folder,
        )

    def seat(self, name: str, revive: Revive, worker: type = Worker) -> Seat:
        def spawn() -> LocalHandle:
            handle = LocalHandle(worker())
            self.spawned.append(handle)
            return handle

        return self.supervisor.seat(name, spawn, revive)

    async def answer(self, seat: Seat) -> Any:
        return await seat.ask("rank", (), 5, "worker")


def handle_of(seat: Seat) -> LocalHandle:
    assert isinstance(seat.handle, LocalHandle)
    return seat.handle


async def at_once(handle: Handle) -> None:
    """A revival of nothing."""


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


def test_a_renewal_ends_though_nobody_asks_for_it_any_more(tmp_path: Path) -> None:
    """As when the judge's engine that made it necessary dies in the middle of it."""
    may_start = asyncio.Event()

    async def revive(handle: Handle) -> None:
        await may_start.wait()

    async def scenario() -> None:
        world = World(tmp_path)
        seat = world.seat("reward/0", revive)
        async with world.supervisor.watching():
            renewing = asyncio.create_task(world.supervisor.renew(seat))
            while seat.number == 0:
                await asyncio.sleep(0)
            renewing.cancel()
            await asyncio.wait([renewing])
            assert not seat.is_up
            may_start.set()
            assert await world.answer(seat) == "ranked"

    run(scenario())


def test_a_worker_that_is_just_starting_is_renewed_too(tmp_path: Path) -> None:
    """It was made when those whom it asks were others, so it is made again behind its start."""
    may_start = asyncio.Event()

    async def revive(handle: Handle) -> None:
        await may_start.wait()

    async def scenario() -> None:
        world = World(tmp_path)
        seat = world.seat("reward/0", revive)
        async with world.supervisor.watching():
            handle_of(seat).kill()
            while seat.number == 0:
                await asyncio.sleep(0.01)
            renewing = asyncio.create_task(world.supervisor.renew(seat))
            await asyncio.sleep(0.01)
            assert seat.number == 1
            may_start.set()
            await renewing
            assert seat.number == 2
            assert seat.is_up
        assert world.diary.names == ["reward/0"]

    run(scenario())


def test_a_worker_that_was_made_since_is_not_renewed_again(tmp_path: Path) -> None:
    """Two engines of a judge come back at the same time, and both ask for it."""

    async def scenario() -> None:
        world = World(tmp_path)
        seat = world.seat("reward/0", at_once)
        async with world.supervisor.watching():
            renew = world.supervisor.renew
            await asyncio.gather(renew(seat), renew(seat))
            assert seat.number == 1
            assert seat.is_up

    run(scenario())


class BrokenRuntime(LocalRuntime):
    """Cannot be asked for its nodes."""

    async def bury(self, handle: Any, pulse: Pulse | None) -> None:
        raise ConnectionError("no answer from the head node")


def test_a_replacement_that_fails_ends_the_run_with_the_cause(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path, BrokenRuntime())
        seat = world.seat("reward/0", at_once)
        async with world.supervisor.watching():
            handle_of(seat).kill()
            told = r"^reward/0: the fake has died.*no answer from the head node"
            with pytest.raises(RunFailed, match=told):
                await world.answer(seat)

    run(scenario())


def test_who_waits_for_a_worker_gets_it_before_the_diary_is_written(
    tmp_path: Path,
) -> None:
    """On a full disk the diary fails, which ends the run with that cause."""

    async def scenario() -> None:
        full = OSError(28, "No space left on device")
        world = World(tmp_path, diary=Diary(full))
        seat = world.seat("reward/0", at_once)
        async with world.supervisor.watching():
            handle_of(seat).kill()
            assert await world.answer(seat) == "ranked"
            told = "reward/0 is back, but the journal .* No space left on device"
            with pytest.raises(RunFailed, match=told):
                while True:
                    await world.answer(seat)
                    await asyncio.sleep(0.01)

    run(scenario())


class SlowWorker(Worker):
    """Its process takes longer to start than a worker may say nothing."""

    start_s = 4 * LIMIT_S


def test_a_process_may_take_longer_to_start_than_a_heartbeat(tmp_path: Path) -> None:
    """As that of an engine of the final policy, which is spawned while all others are watched."""

    async def scenario() -> None:
        world = World(tmp_path)
        async with world.supervisor.watching():
            seat = world.seat("final/0", at_once, SlowWorker)
            await asyncio.sleep(2 * SlowWorker.start_s)
            assert seat.number == 0
            assert seat.is_up
            assert seat.last_pulse is not None

    run(scenario())


def test_a_process_that_does_not_start_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class NeverStarts(Worker):
        start_s = 3600.0

    async def scenario() -> None:
        world = World(tmp_path)
        async with world.supervisor.watching():
            world.seat("final/0", at_once, NeverStarts)
            while not caplog.messages:
                await asyncio.sleep(0.05)

    run(scenario())
    told = f"final/0: its process did not start within {START_LIMIT_S:g} s"
    assert caplog.messages[0].startswith(told)

"""An engine's core that does not answer is told of, unless it is busy with weights."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from actors.engine import core_watch
from actors.engine.async_engine import AsyncVllmEngine
from actors.engine.core_watch import CoreWatch
from common.push.meeting import EngineSeat

MOMENT_S = 0.2


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_watch, "PAUSE_S", 0.01)
    monkeypatch.setattr(core_watch, "TICK_S", 0.01)


class Core:
    """Answers like vLLM, until it hangs."""

    errored = False

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.answers.set()
        self.is_paused = False

    async def get_weight_version(self) -> str:
        await self.answers.wait()
        return "3"

    async def update_weight_version(self, version: str) -> None:
        await self.answers.wait()

    async def pause_generation(self, **_: object) -> None:
        await self.answers.wait()
        self.is_paused = True

    async def resume_generation(self) -> None:
        self.is_paused = False


class Engine(AsyncVllmEngine):
    """Of such a core; it takes every push."""

    def __init__(self, core: Core) -> None:
        self._llm: Any = core
        self._core = CoreWatch(self._llm)
        self._model_path = ""
        self._num_workers = 1
        self._expected: Any = SimpleNamespace(check_shapes=lambda *_: None)

    async def swap(self, load_s: float) -> None:
        await self._swap(lambda: asyncio.sleep(load_s), "4")

    async def close(self) -> None:
        self._core.close()


def silence_after(does: Any, hangs: bool = True) -> float:
    """Seconds that the core is said to be silent, some time after it hangs and the engine begins to do this."""

    async def scenario() -> float:
        core = Core()
        engine = Engine(core)
        if hangs:
            core.answers.clear()
        doing = asyncio.create_task(does(engine))
        await asyncio.sleep(MOMENT_S)
        silent_s = engine.vitals().silent_s
        doing.cancel()
        await engine.close()
        return silent_s

    return asyncio.run(scenario())


def test_a_core_that_hangs_is_silent() -> None:
    assert silence_after(lambda engine: asyncio.sleep(9)) > MOMENT_S / 4
    assert silence_after(lambda engine: asyncio.sleep(9), hangs=False) < MOMENT_S / 4


def test_a_core_that_hangs_before_weights_come_is_silent() -> None:
    """Only one that has paused may be silent."""
    assert silence_after(lambda engine: engine.swap(9.0)) > MOMENT_S / 4
    assert silence_after(lambda engine: engine.swap(9.0), hangs=False) == 0


def test_a_core_that_hangs_takes_part_in_no_push() -> None:
    """It would keep the other engines from sampling until it is missed."""
    plan: Any = SimpleNamespace(check_model=lambda *_: None, shapes={})

    async def scenario() -> bool:
        core = Core()
        engine = Engine(core)
        assert isinstance(await engine.check_push(4, plan), EngineSeat)
        core.answers.clear()
        asking = asyncio.create_task(engine.check_push(5, plan))
        await asyncio.sleep(MOMENT_S)
        is_done = asking.done()
        asking.cancel()
        await engine.close()
        return is_done

    assert not asyncio.run(scenario())


def test_a_question_that_fails_is_not_the_last() -> None:
    """A core that hangs afterwards is still noticed."""

    class Failing(Core):
        has_failed = False

        async def get_weight_version(self) -> str:
            if not self.has_failed:
                self.has_failed = True
                raise RuntimeError("this call failed")
            return await super().get_weight_version()

    async def scenario() -> float:
        core = Failing()
        engine = Engine(core)
        core.answers.clear()
        await asyncio.sleep(MOMENT_S)
        silent_s = engine.vitals().silent_s
        await engine.close()
        return silent_s

    assert asyncio.run(scenario()) > MOMENT_S / 4

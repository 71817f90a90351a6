"""Whether vLLM's engine core, a process of its own, still lives and answers."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from actors.engine.causes import cause_in_log
from actors.vllm_api import AsyncLLM
from common.protocols import Vitals

PAUSE_S = 1.0
TICK_S = 0.25
SIGNAL_NAMES = {-9: "SIGKILL, often for want of memory", -11: "SIGSEGV", -6: "SIGABRT"}


class CoreWatch:
    """Asks the core something that it answers between two steps, one question at a time.

    Loads of weights and sleeping engines answer late, so nothing is asked meanwhile. Time counts in ticks of this event
    loop: while it is busy itself, an answer that is there cannot be read.
    """

    def __init__(self, llm: AsyncLLM) -> None:
        """Begin, inside the event loop that uses the engine."""
        self._llm = llm
        self._silent_s = 0.0
        self._is_silence_expected = False
        self._asking = asyncio.create_task(self._ask())

    def expect_silence(self) -> None:
        """Ask nothing from here on."""
        self._is_silence_expected = True

    def expect_answers(self) -> None:
        """Ask again."""
        self._is_silence_expected = False

    def vitals(self) -> Vitals:
        """How the core is; may be asked from any thread."""
        if self._llm.errored:
            return Vitals(fault=self._end_of_core())
        return Vitals(silent_s=self._silent_s)

    def close(self) -> None:
        """Ask no more."""
        self._asking.cancel()

    async def _ask(self) -> None:
        while True:
            await asyncio.sleep(PAUSE_S)
            # A core that has died is told by `errored`; one that could not answer once may answer next time.
            with suppress(Exception):
                if not self._is_silence_expected:
                    await self._ask_once()

    async def _ask_once(self) -> None:
        question = asyncio.ensure_future(self._llm.get_weight_version())
        while not question.done():
            asked = time.monotonic()
            await asyncio.wait([question], timeout=TICK_S)
            # A longer tick was this process's own pause.
            self._silent_s += min(time.monotonic() - asked, TICK_S)
            if self._is_silence_expected:
                self._silent_s = 0.0
        self._silent_s = 0.0
        question.result()

    def _end_of_core(self) -> str:
        cause = cause_in_log()
        if cause:
            return f"its engine ended: {cause}"
        return f"its engine's process ended{self._signal()}"

    def _signal(self) -> str:
        manager = getattr(self._llm.engine_core.resources, "engine_manager", None)
        for process in getattr(manager, "processes", ()):
            status = process.exitcode
            if status is not None and status < 0:
                return f" by {SIGNAL_NAMES.get(status, f'signal {-status}')}"
        return " without a word"

"""What a heartbeat finds, and what it does not mistake for a fault."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

from cluster.supervision.heartbeat import fault_of, first_fault
from common.protocols import Pulse, Vitals
from tests.fakes.runtime import LocalHandle

LIMIT_S = 0.2


class Worker:
    """Answers its pulses with these vitals, one after another, the last one for ever."""

    def __init__(self, *vitals: Vitals) -> None:
        self.waiting = list(vitals)

    def pulse(self) -> Pulse:
        vitals = self.waiting[0]
        if len(self.waiting) > 1:
            self.waiting.pop(0)
        return Pulse("here", "", (), vitals)


def fault(handle: LocalHandle) -> str:
    return asyncio.run(fault_of(handle, LIMIT_S, lambda pulse: None))


def test_a_worker_that_is_well_has_no_fault() -> None:
    assert fault(LocalHandle(Worker(Vitals(silent_s=LIMIT_S)))) == ""


def test_faults_are_told_apart() -> None:
    dead, hanging = LocalHandle(Worker(Vitals())), LocalHandle(Worker(Vitals()))
    dead.kill()
    hanging.hang()
    assert fault(dead) == "the fake has died"
    assert fault(hanging) == "it has said nothing for 0.2 s"
    silent = LocalHandle(Worker(Vitals(silent_s=0.3)))
    assert fault(silent) == "its engine has said nothing for 0.2 s"
    ended = LocalHandle(Worker(Vitals("its engine ended: no memory")))
    assert fault(ended) == "its engine ended: no memory"


def test_the_first_fault_ends_the_watch_and_every_pulse_is_noted() -> None:
    worker = Worker(Vitals(), Vitals(silent_s=0.1), Vitals("broken"))
    noted: list[Pulse] = []
    watch = first_fault(LocalHandle(worker), LIMIT_S, noted.append)
    assert asyncio.run(asyncio.wait_for(watch, 5)) == "broken"
    assert [pulse.vitals.silent_s for pulse in noted] == [0, 0.1, 0]


def test_a_controller_that_was_stopped_itself_takes_nobody_for_hung() -> None:
    """While it stands still the limit passes, and the answer is there before it is looked at."""

    class Prompt(LocalHandle):
        def pulse(self) -> Awaitable[Pulse]:
            answer = super().pulse()
            # Once: as SIGSTOP and SIGCONT would.
            asyncio.get_running_loop().call_soon(self._stand_still)
            return answer

        def _stand_still(self) -> None:
            if not self.stood:
                self.stood = True
                time.sleep(2 * LIMIT_S)

        stood = False

    assert fault(Prompt(Worker(Vitals()))) == ""


def test_a_worker_without_an_engine_is_as_well_as_its_process() -> None:
    from cluster.runtime.seated import seated

    class Plain:
        pass

    worker: Any = seated(Plain, ".")()
    assert worker.pulse().vitals == Vitals()

"""The simulation of the controller runs, and its clock skips what would be waited for."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import pytest

from benchmarks import controller_scale
from benchmarks.simulated_clock import SimulatedClock


def test_a_small_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--engines 2 --pairs 320 --prompts 50 --checkpoint-interval 4"
    monkeypatch.setattr(sys, "argv", ["controller_scale", *words.split()])
    controller_scale.main()
    (run,) = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert run["pairs"] == 320
    assert sum(run["staleness"].values()) == pytest.approx(1, abs=0.01)
    assert max(map(int, run["staleness"])) <= 2
    # Nothing waits at the end, and of the prompts a position alone is kept.
    assert run["state_kb"][-1] < 2
    assert 0.3 < run["of_ideal"] <= 1.1


def test_sleeps_cost_nothing_and_threads_are_waited_for() -> None:
    async def hours() -> tuple[float, str]:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await asyncio.sleep(7200)
        said = await asyncio.to_thread(lambda: time.sleep(0.05) or "done")
        return loop.time() - begin, said

    begin = time.monotonic()
    with asyncio.Runner(loop_factory=SimulatedClock) as runner:
        seconds, said = runner.run(hours())
    assert said == "done"
    assert 7200.05 <= seconds < 7205
    assert time.monotonic() - begin < 60

"""Runs and jobs as functions, also where an event loop runs already, as in a notebook."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster import library
from cluster.jobs.event_loop import run_async
from common.config import RunConfig
from common.config.jobs import BdhsJobConfig, EvaluateConfig, PovidJobConfig
from common.config.overrides import load_config
from common.data.datasets import read_pairs
from common.errors import UserError
from tests.docs.light_commands import Scratch

PRESET = "cluster/configs/shapes_online.toml"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scratch:
    return Scratch(tmp_path, monkeypatch)


# Settings.


def test_settings_are_the_words_of_a_command_line() -> None:
    values = {
        "learner.loss.kind": "ipo",
        "learner.loss.beta": 0.9,
        "checkpoint.background": False,
        "evaluation.suites": ["shapes", {"kind": "shapes", "name": Path("mine")}],
        "evaluation.suites.0.test_scenes": 7,
        "cluster.env": {"NCCL_DEBUG": "INFO"},
    }
    words = [
        "--learner.loss.kind=ipo",
        "--learner.loss.beta=0.9",
        "--checkpoint.background=false",
        '--evaluation.suites=["shapes", {"kind": "shapes", "name": "mine"}]',
        "--evaluation.suites.0.test_scenes=7",
        "--cluster.env.NCCL_DEBUG=INFO",
    ]
    assert library.settings(values, PRESET) == load_config(Path(PRESET), words)
    assert type(library.settings({}, PRESET)) is RunConfig


def test_a_mistake_is_the_line_that_a_command_prints() -> None:
    with pytest.raises(UserError, match=r"learner.num_stepz.*did you mean"):
        library.settings({"learner.num_stepz": 3}, PRESET)


# Loops.


def in_a_notebook(call: Callable[[], Any]) -> Any:
    """Call a function while a loop runs in this thread; without asyncio.run, which would catch Ctrl-C itself."""

    async def cell() -> Any:
        return call()

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(cell())
    finally:
        loop.close()


async def thread_of_work() -> threading.Thread:
    await asyncio.sleep(0)
    return threading.current_thread()


def test_work_runs_here_or_beside_a_loop_that_runs() -> None:
    here = threading.current_thread()
    assert run_async(thread_of_work()) is here
    assert in_a_notebook(lambda: run_async(thread_of_work())) is not here


def test_an_error_comes_through() -> None:
    async def fail() -> None:
        raise UserError("expected more, got less")

    with pytest.raises(UserError, match="expected more"):
        in_a_notebook(lambda: run_async(fail()))


def test_an_interrupt_ends_the_work_before_it_is_raised() -> None:
    ended: list[str] = []

    async def work() -> None:
        # The main thread waits for this work by then.
        await asyncio.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        in_a_notebook(lambda: run_async(work()))
    assert ended == ["cleaned up"]


def test_an_interrupt_before_the_wait_ends_the_work_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[str] = []

    class Interrupting(ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            future = super().submit(*args, **kwargs)
            signal.raise_signal(signal.SIGINT)
            return future

    async def work() -> None:
        try:
            await asyncio.sleep(5)
            ended.append("went on")
        finally:
            ended.append("cleaned up")

    monkeypatch.setattr("cluster.jobs.event_loop.ThreadPoolExecutor", Interrupting)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        in_a_notebook(lambda: run_async(work()))
    assert ended == ["cleaned up"]
    assert signal.getsignal(signal.SIGINT) is handler


# Runs and jobs.


def test_a_run_in_a_notebook(scratch: Scratch) -> None:
    """It trains once, and then it is only read."""
    config = library.settings({"run.dir": "runs/mine"}, PRESET)
    run = in_a_notebook(lambda: library.train(config))
    assert run.path == scratch.folder / "runs/mine"
    assert "chair_i" in run.final.suites["shapes"].metrics
    assert len(run.curve("loss")) == 2
    written = (run.path / "metrics.jsonl").read_bytes()
    again = in_a_notebook(lambda: library.train(config, resume=True))
    assert again.final == run.final
    assert (run.path / "metrics.jsonl").read_bytes() == written
    with pytest.raises(UserError, match="with a run in it"):
        library.train(config)


@pytest.mark.parametrize("schema", [PovidJobConfig, BdhsJobConfig])
def test_a_pair_set_in_a_notebook(
    schema: type[PovidJobConfig] | type[BdhsJobConfig], scratch: Scratch
) -> None:
    values = {"generate.out": "pairs", "data.prompts.count": 12}
    if schema is PovidJobConfig:
        values["povid.corrupter"] = "rules"
    config = library.settings(values, schema=schema)
    out = in_a_notebook(lambda: library.generate(config))
    assert out == Path("pairs")
    assert 0 < len(read_pairs(out)) <= 12


def test_two_policies_measured_in_a_notebook(scratch: Scratch) -> None:
    values = {
        "evaluate.policy": "MODEL",
        "evaluate.baseline": "common/shapes/policy",
        "evaluate.scenes": 3,
        "evaluation.suites": ["shapes", {"kind": "shapes", "name": Path("mine")}],
    }
    config = library.settings(values, schema=EvaluateConfig)
    cards = in_a_notebook(lambda: library.evaluate(config))
    assert list(cards) == ["start", "policy"]
    card = cards["policy"].suites["shapes"]
    assert card.value("win_rate") == 0.5
    assert card.counts["num_captions"] == 3

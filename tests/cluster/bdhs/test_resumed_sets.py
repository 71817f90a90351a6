"""`python -m cluster.generate bdhs` that is killed and begun again makes the set that it would have made."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from cluster.jobs.bdhs_job import run, spec_of
from common.config import RunConfig
from common.config.jobs import BdhsJobConfig
from common.data.datasets import PAIRS, STATS, read_pairs
from common.data.pair_writer import PairWriter
from common.errors import UserError
from common.records import Prompt
from tests.cluster.bdhs.scripted import (
    Killed,
    StartedEngines,
    line_of,
    rows_of,
    scripted,
    stats_of,
)


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    job: Callable[..., BdhsJobConfig],
) -> None:
    whole, parts = job(out="whole"), job(out="parts")
    run(whole, scripted())
    for killed_at in (2, 3, 1):
        with pytest.raises(Killed):
            run(parts, scripted(killed_at=killed_at))
    assert not (parts.generate.out / PAIRS).exists()
    run(parts, scripted(num_workers=3))
    check_equal(whole, parts)
    assert len(rows_of(whole)) > 80
    stats = stats_of(whole)
    assert stats["num_prompts"] == 150
    assert stats["num_pairs"] + sum(stats["dropped"].values()) == 150
    assert stats["dropped"]["engine_refused"] > 0
    assert stats["accepted_per_attempt"]["2"] > 0


def check_equal(whole: BdhsJobConfig, parts: BdhsJobConfig) -> None:
    """Two sets have the same pairs and, to the byte, the same statistics."""
    assert rows_of(whole) == rows_of(parts)
    whole_stats = (whole.generate.out / STATS).read_text()
    parts_stats = (parts.generate.out / STATS).read_text()
    assert whole_stats == parts_stats


CHILD = """
import os, signal, sys
from cluster.jobs import bdhs_job
from cluster.jobs import shards
from cluster.generate import config_of
from tests.cluster.bdhs import scripted

class Killed(BaseException):
    def __new__(cls):
        os.kill(os.getpid(), signal.SIGKILL)

scripted.Killed = Killed
shards.SHARD_PROMPTS = 16
killed_at, *line = sys.argv[1:]
bdhs_job.run(config_of(line), scripted.scripted(killed_at=int(killed_at)))
"""


@pytest.mark.chaos
def test_a_process_that_is_killed_outright_loses_and_repeats_nothing(
    job: Callable[..., BdhsJobConfig],
) -> None:
    whole, parts = job(out="whole"), job(out="parts")
    run(whole, scripted())
    options = ("--model", parts.model.path, "--count", "150")
    line = line_of(parts.generate.out, *options)
    finished: list[int] = []
    for killed_at in (2, 3):
        child = [sys.executable, "-c", CHILD, str(killed_at), *line]
        died = subprocess.run(child, capture_output=True)
        assert died.returncode == -signal.SIGKILL, died.stderr
        with PairWriter(parts.generate.out, spec_of(parts)) as writer:
            ids = [note["id"] for note in writer.notes]
        assert len(set(ids)) == len(ids)
        finished.append(len(ids))
    assert 0 < finished[0] < finished[1] < 150
    run(parts, scripted(num_workers=2))
    check_equal(whole, parts)


def test_nothing_finished_is_asked_again(job: Callable[..., BdhsJobConfig]) -> None:
    done: list[str] = []

    @asynccontextmanager
    async def counting(
        config: RunConfig,
    ) -> StartedEngines:
        async with scripted()(config) as ((generate,), count):

            def watch(prompt: Prompt) -> int:
                done.append(prompt.id)
                return count(prompt)

            yield [generate], watch

    with pytest.raises(Killed):
        run(job(), scripted(killed_at=4))
    finished = len(PairWriter(job().generate.out, spec_of(job())).notes)
    assert finished > 16
    run(job(), counting)
    assert len(done) == 150 - finished


def test_a_complete_set_starts_no_engine(
    job: Callable[..., BdhsJobConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    run(job(count=3), scripted())
    before = read_pairs(job().generate.out)

    def none(config: RunConfig) -> NoReturn:
        pytest.fail("an engine is started")

    run(job(count=3), none)
    assert "already complete" in capsys.readouterr().out
    assert read_pairs(job().generate.out) == before


def test_other_settings_or_another_model_in_the_folder_are_refused(
    job: Callable[..., BdhsJobConfig],
) -> None:
    run(job(count=3), scripted())
    with pytest.raises(UserError, match=r"rho = 0\.5"):
        run(job("--rho", "0.5", count=3), scripted())
    first = job(count=3)
    (Path(first.model.path) / "config.json").write_text('{"other": 1}')
    with pytest.raises(UserError, match="model_hash"):
        run(first, scripted())

"""`python -m cluster.generate bdhs` with Ray actors and vLLM engines."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from actors.image_tokens import ImageTokenCounter
from actors.rollout import RolloutWorker
from cluster.jobs import bdhs_job
from cluster.jobs.bdhs_job import run
from cluster.jobs.engines import ray_engines
from common.chat import encoder_of
from common.config.jobs import BdhsJobConfig
from tests.cluster.bdhs.scripted import (
    StartedEngines,
    bdhs_config,
    line_of,
    recorded,
    rows_of,
    stats_of,
)

NUM_PROMPTS = 24


@asynccontextmanager
async def engine_here(config: BdhsJobConfig) -> StartedEngines:
    """One engine in this process, without Ray."""
    worker = RolloutWorker(config, 0)
    await worker.start()
    yield [worker.generate], ImageTokenCounter(encoder_of(config.model))
    await worker.close()


@pytest.mark.real
@pytest.mark.long
def test_two_real_workers_make_what_one_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two Ray actors on the shapes world's policy share the prompts without overlap; one engine here makes the same."""
    monkeypatch.setattr(bdhs_job, "WINDOW", 4)
    count = ("--count", str(NUM_PROMPTS))
    one = bdhs_config(
        [*line_of(tmp_path / "one", *count), "--rollout.deterministic", "true"]
    )
    run(one, engine_here)
    line = line_of(tmp_path / "two", *count, "--workers", "2")
    two = bdhs_config([*line, "--rollout.num_cpus", "0.5"])
    prompts_of_workers: list[list[str]] = []
    run(two, recorded(ray_engines, prompts_of_workers))
    prompts = [set(prompt_ids) for prompt_ids in prompts_of_workers]
    assert len(prompts) == 2
    assert min(map(len, prompts)) >= 4
    assert sum(map(len, prompts)) == len(set().union(*prompts)) == NUM_PROMPTS
    stats = stats_of(one)
    assert stats["num_prompts"] == NUM_PROMPTS
    assert stats["num_pairs"] + sum(stats["dropped"].values()) == NUM_PROMPTS
    assert stats == stats_of(two)
    assert rows_of(one) == rows_of(two)

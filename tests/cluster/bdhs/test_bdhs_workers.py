"""`python -m cluster.generate bdhs` with Ray actors and vLLM engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.jobs import bdhs_job
from cluster.jobs.bdhs_job import run
from cluster.jobs.engines import ray_engines
from common.config.jobs import BdhsJobConfig
from tests.cluster.bdhs.scripted import (
    bdhs_config,
    line_of,
    recorded,
    rows_of,
    stats_of,
)


@pytest.mark.real
@pytest.mark.slow
def test_two_real_workers_make_what_one_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray actors with vLLM engines on the shapes world's policy: prompts shared without overlap, the same set."""
    monkeypatch.setattr(bdhs_job, "WINDOW", 4)
    configs: list[BdhsJobConfig] = []
    for num_workers in (1, 2):
        prompts_of_workers: list[list[str]] = []
        options = ("--count", "24", "--workers", str(num_workers))
        line = line_of(tmp_path / str(num_workers), *options)
        config = bdhs_config([*line, "--rollout.num_cpus", "0.5"])
        run(config, recorded(ray_engines, prompts_of_workers))
        configs.append(config)
        nums_of_prompts = [len(set(prompt_ids)) for prompt_ids in prompts_of_workers]
        assert len(nums_of_prompts) == num_workers
        assert min(nums_of_prompts) >= 4
        # No prompt is with two workers, and none is left out.
        assert sum(nums_of_prompts) == 24
        assert len(set().union(*prompts_of_workers)) == 24
    one, two = configs
    stats = stats_of(one)
    assert stats["num_prompts"] == 24
    assert stats["num_pairs"] + sum(stats["dropped"].values()) == 24
    assert stats == stats_of(two)
    assert rows_of(one) == rows_of(two)

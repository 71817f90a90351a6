"""Two steps of a run on each family, with a real engine and learner in this process: pushes are proved by log-probs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cluster.run.experiment import Experiment
from cluster.run.run_dir import RunDir
from cluster.runtime.placement import plan
from common.chat import ChatEncoder
from common.config import RunConfig
from common.config.overrides import load_config
from tests.cluster.runs import SUITES
from tests.fakes import LocalRuntime
from tests.families.case import Case
from tests.families.cases import ON_CPU, parameters
from tests.real_runs import events, metric_lines

JUDGE = """
def score(completions, **_):
    return [float(sum(map(ord, text)) % 997) for text in completions]
"""
"""Random models write nonsense: any order of it will do."""


def config_of(case: Case, folder: Path) -> RunConfig:
    judge = folder / "judge.py"
    judge.write_text(JUDGE)
    values = {
        "run.dir": folder / "run",
        "model.path": case.directory(),
        "model.dtype": case.engine_dtype,
        "data.prompts.count": 12,
        "reward.judge.kind": f"{judge}:score",
        "rollout.deterministic": "true",
        "rollout.max_tokens": 8,
        "rollout.engine.block_size": 32,
        "learner.engine": "torch",
        "learner.num_steps": 2,
        "learner.global_batch": 2,
        "learner.micro_batch": 2,
        "learner.optimizer.lr": 1e-2,
        "learner.optimizer.warmup_steps": 0,
        "mixture.online_fraction": 1,
        "checkpoint.interval": 2,
        # bfloat16 rounds sums in another order here and there.
        "loop.probe_tolerance": 10 * case.engine_tolerance,
        "evaluation.suites": SUITES,
        "evaluation.bootstrap_samples": 10,
        "evaluation.samples_shown": 1,
    }
    return load_config(None, [f"--{key}={value}" for key, value in values.items()])


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("case", parameters(ON_CPU))
def test_two_steps(case: Case, tmp_path: Path) -> None:
    config = config_of(case, tmp_path)
    runtime = LocalRuntime()
    with RunDir(config, resume=False) as run_dir:
        experiment = Experiment(config, run_dir, runtime, plan(config))
        asyncio.run(asyncio.wait_for(experiment.run(), 170))
    published = events(tmp_path / "run", "publish")
    assert published[-1]["version"] == 2
    assert published[-1]["change_norm"] > 0
    assert len(metric_lines(tmp_path / "run")) == 2
    (learner,) = [
        handle.worker
        for name, handle in runtime.handles.items()
        if name.startswith("learner")
    ]
    assert ("share_prompt" in learner.fast.fallbacks) == (case.rows_because is not None)
    # What was exported is a model of the family again.
    ChatEncoder(tmp_path / "run" / "policy", config.model.max_length)

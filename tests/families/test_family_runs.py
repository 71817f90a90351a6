"""Two steps of a run on each family, with a real engine and learner in this process: pushes are proved by log-probs."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from cluster.placement.bundles import plan
from cluster.run.experiment import Experiment
from cluster.run.run_dir import RunDir
from common.chat import ChatEncoder
from common.config import RunConfig
from common.config.overrides import load_config
from tests.cluster.runs import SUITES
from tests.fakes.runtime import LocalRuntime
from tests.families.case import Case
from tests.families.cases import ON_CPU, parameters
from tests.families.qwen import QWEN3_5
from tests.real_runs import command, events, metric_lines, run_to_end, settings

JUDGE = """
def score(prompt, image, completions, **_):
    return [float(sum(map(ord, text)) % 997) for text in completions]
"""
"""Random models write nonsense: any order of it will do."""
IN_PROCESS = [case for case in ON_CPU if case.engine_dtype == "float32"]
LONGER = {"internvl", "llava_next", "mistral3", "pixtral"}
"""Families of which CI runs the engines and the pushes, and no run: those of the others differ more."""


def values_of(case: Case, folder: Path) -> dict[str, object]:
    """Config keys and their values."""
    judge = folder / "judge.py"
    judge.write_text(JUDGE)
    return {
        "run.dir": folder / "run",
        "model.path": case.directory(),
        "model.dtype": case.engine_dtype,
        "data.prompts.count": 12,
        "reward.judge.kind": f"{judge}:score",
        "rollout.deterministic": "true",
        # Both ends are in this one process, where neither could wait for the other.
        "weights.transport": "object_store",
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
        "evaluation.suites": SUITES,
        "evaluation.bootstrap_samples": 10,
        "evaluation.samples_shown": 1,
    }


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("case", parameters(IN_PROCESS, LONGER))
def test_two_steps(case: Case, tmp_path: Path) -> None:
    config = load_config(None, settings(values_of(case, tmp_path)))
    learner = asyncio.run(_run(config))
    _check_run(tmp_path / "run", case, config.model.max_length)
    assert ("share_prompt" in learner.fast.fallbacks) == (case.rows_because is not None)


async def _run(config: RunConfig) -> Any:
    """A run to its end; the learner."""
    # An engine of an earlier run takes the process group of all others along when it is collected.
    gc.collect()
    runtime = LocalRuntime()
    workers = runtime.handles
    try:
        with RunDir(config, resume=False) as run_dir:
            experiment = Experiment(config, run_dir, runtime, plan(config))
            await asyncio.wait_for(experiment.run(), 170)
    finally:
        # The next engine of this process may have experts, for which vLLM needs a process group of another kind.
        for name, handle in workers.items():
            if name.startswith("rollout"):
                await handle.worker.close()
    return workers["learner/0"].worker


def _check_run(run_dir: Path, case: Case, max_length: Any) -> None:
    """Both steps are pushed, and what was exported is a model of the family again."""
    published = events(run_dir, "publish")
    # Of trained weights, ten times what the two differ by for the start policy.
    for event in published:
        assert event["weights/probe_abs_max"] <= 10 * case.engine_tolerance
    assert published[-1]["version"] == 2
    assert published[-1]["change_norm"] > 0
    assert len(metric_lines(run_dir)) == 2
    ChatEncoder(run_dir / "policy", max_length)


@pytest.mark.real
@pytest.mark.long
def test_two_steps_of_qwen3_5(tmp_path: Path) -> None:
    """In bfloat16, which engines on a CPU need and DeepSpeed alone trains; so in processes of their own."""
    values = values_of(QWEN3_5, tmp_path) | {"learner.engine": "deepspeed"}
    run_to_end(command("cluster.train", *settings(values)), 400)
    _check_run(tmp_path / "run", QWEN3_5, 512)

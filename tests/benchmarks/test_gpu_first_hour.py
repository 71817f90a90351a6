"""The first hour's command runs whole on a tiny model; its layouts for GPUs are accepted and fit, by the planner."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.gpu_first_hour import LAYOUTS, PUSHES, STEPS, parse, settings_of
from benchmarks.letters_judge import score
from benchmarks.memory_watch import MemoryWatch, role_of
from cluster.placement.bundles import plan
from cluster.planner.check import problems_of
from cluster.planner.gpu_kinds import GPU_KINDS
from cluster.planner.plan import plan_run
from common.config.overrides import load_config
from tests.cluster.planner.model_configs import write
from tests.real_runs import command, run_to_end


@pytest.mark.parametrize("kind", ["h100", "a100-80"])
@pytest.mark.parametrize("gpus", [1, 8])
def test_the_layout_for_gpus_fits(gpus: int, kind: str, tmp_path: Path) -> None:
    """Random weights of the same sizes as LLaVA-1.5-7B's: its config file says what the planner must know."""
    model = write("llava-1.5-7b-hf", tmp_path)
    words = settings_of(LAYOUTS["7b", gpus], tmp_path)
    words += [f"--model.path={model}", f"--cluster.gpu={kind}"]
    config = load_config(None, words)
    assert sum(bundle.num_gpus for bundle in plan(config)) == gpus
    planned = plan_run(config, GPU_KINDS[kind])
    assert list(problems_of(config, planned, [])) == []
    assert planned.numel == pytest.approx(7.06e9, rel=1e-3)
    assert planned.full_sequences > 4


def test_the_command_line() -> None:
    assert parse([]).gpus == 8
    assert parse(["--size", "tiny"]).gpus == 0
    assert parse(["--gpus", "1", "--model.dtype", "bfloat16"]).settings == [
        "--model.dtype",
        "bfloat16",
    ]
    with pytest.raises(SystemExit):
        parse(["--size", "tiny", "--gpus", "8"])


def test_the_judge_tells_answers_apart() -> None:
    assert score("?", ["ab", "b", ""]) == [97.5, 98.0, 0.0]


def test_only_actors_are_watched() -> None:
    """This process is no actor; nothing else on this machine has to be there."""
    import psutil

    assert role_of(psutil.Process(os.getpid())) is None
    watch = MemoryWatch()
    watch.look()
    assert set(watch.ram) <= {"rollout", "learner", "reward"}


@pytest.mark.real
@pytest.mark.long
def test_a_tiny_run(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    words = command("benchmarks.gpu_first_hour", "--size", "tiny", "--out", out)
    result = json.loads(run_to_end(words, 500).splitlines()[-1])
    assert result == json.loads(out.read_text())
    assert result["ran"] and result["doctor"]["ready"], result
    assert (result["steps"], result["pushes"]) == (STEPS, PUSHES)
    assert result["probe_error"] < 1e-3
    assert set(result["gib"]) == {"rollout", "learner", "reward"}
    assert result["plan"]["gib"]["learner"]["parts"]["weights"] > 0
    assert result["plan"]["problems"] == []
    assert result["seconds"]["step_s"] > 0 and result["seconds"]["publish_s"] > 0


@pytest.mark.gpu
@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_seven_billion_on_one_gpu(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    words = command("benchmarks.gpu_first_hour", "--gpus", "1", "--out", out)
    result = json.loads(run_to_end(words, 3500).splitlines()[-1])
    assert result["ran"] and result["doctor"]["ready"], result
    (used,) = result["devices_gib"].values()
    planned = result["plan"]["gib"]
    assert used <= planned["rollout"]["total"] + planned["learner"]["total"]

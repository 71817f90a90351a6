"""The README's path on real parts: BDHS pairs, then mixed online DPO on Ray, vLLM and DeepSpeed, killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cluster.doctor import list_gpus
from common.config import SHAPES_POLICY
from common.datasets import read_pairs
from common.journal import read_events
from common.metrics import read_lines

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.chaos]

ROOT = Path(__file__).parents[1]
STEPS = 6
ON_GPU = ("--rollout.num_gpus", "1") if list_gpus() else ()


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", *map(str, words)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("end_to_end")


@pytest.fixture(scope="module")
def offline(folder: Path) -> Path:
    words = command(
        "cluster.generate", "bdhs", "--out", folder / "bdhs", "--count", "24", *ON_GPU
    )
    answer = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert "accepted at attempt 1" in answer.stdout
    return folder / "bdhs"


@pytest.fixture(scope="module")
def run_dir(folder: Path, offline: Path) -> Path:
    """A run that was killed without warning after its first checkpoint, and resumed."""
    run_dir = folder / "run"
    preset = "cluster/configs/shapes_mixed.toml"
    words = command(
        "cluster.train",
        preset,
        "--resume",
        "--run.dir",
        run_dir,
        "--data.offline.path",
        offline,
        *ON_GPU,
    )
    sizes = {
        "learner.num_steps": STEPS,
        "learner.global_batch": 8,
        "learner.micro_batch": 4,
        "checkpoint.interval": 2,
    }
    sizes |= {
        "data.prompts.count": 100,
        "evaluation.suites.0.test_scenes": 8,
        "evaluation.suites.0.validation_scenes": 4,
    }
    words += [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
    with (folder / "first.log").open("w") as log:
        first = subprocess.Popen(
            words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        assert wait_for(
            lambda: len(steps(run_dir)) >= 3 or first.poll() is not None, 400
        ), "no third step in time"
        assert first.poll() is None, (folder / "first.log").read_text()[-3000:]
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    answer = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert "CHAIR_i" in answer.stdout
    return run_dir


def steps(run_dir: Path) -> list[dict[str, float]]:
    return (
        read_lines(run_dir / "metrics.jsonl")
        if (run_dir / "metrics.jsonl").exists()
        else []
    )


def wait_for(condition: Callable[[], bool], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def test_offline_pairs_are_bdhs_pairs(offline: Path) -> None:
    pairs = read_pairs(offline)
    assert (
        len(pairs)
        + sum(json.loads((offline / "stats.json").read_text())["dropped"].values())
        == 24
    )
    assert all(
        pair.chosen.text != pair.rejected.text and pair.weight_version is None
        for pair in pairs
    )


def test_every_step_is_recorded_once_and_each_pair_trained_once(run_dir: Path) -> None:
    assert [line["step"] for line in steps(run_dir)] == list(range(1, STEPS + 1))
    last: dict[int, list[str]] = {}
    online: set[str] = set()
    resumed = 0
    for event in read_events(run_dir / "journal" / "events.jsonl"):
        if event["event"] == "step":
            last[event["step"]] = event["pairs"]
        online |= {event["id"]} if event.get("outcome") == "pair" else set()
        resumed += event["event"] == "resume"
    assert resumed == 1
    trained = [pair for step in range(1, STEPS + 1) for pair in last[step]]
    fresh = [pair for pair in trained if pair in online]
    assert len(trained) == STEPS * 8
    assert len(fresh) == len(set(fresh)) > 0
    assert len(fresh) < len(trained)


def test_engines_proved_every_version(run_dir: Path) -> None:
    published = [
        e
        for e in read_events(run_dir / "journal" / "events.jsonl")
        if e["event"] == "publish"
    ]
    assert published[-1]["version"] == STEPS
    assert all(max(event["probe_error"]) < 1e-3 for event in published)
    assert published[-1]["change_norm"] > 0


def test_a_run_leaves_what_the_readme_says(run_dir: Path) -> None:
    card = json.loads((run_dir / "scorecard.json").read_text())
    keys = {
        "chair_s",
        "chair_i",
        "recall",
        "pope_accuracy",
        "pope_f1",
        "pope_yes_ratio",
        "win_rate",
    }
    for policy in ("baseline", "final"):
        assert keys <= set(card[policy]["suites"]["shapes"]["metrics"])
    assert (
        json.loads((run_dir / "config.json").read_text())["learner"]["num_steps"]
        == STEPS
    )
    assert "data:image/png" in (run_dir / "samples.html").read_text()
    assert list((run_dir / "tensorboard").iterdir())
    assert read_pairs(run_dir / "pairs")


def test_the_policy_is_a_plain_directory_with_new_weights(run_dir: Path) -> None:
    model, info = AutoModelForImageTextToText.from_pretrained(
        run_dir / "policy", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    AutoProcessor.from_pretrained(run_dir / "policy")
    start = AutoModelForImageTextToText.from_pretrained(
        ROOT / SHAPES_POLICY
    ).state_dict()
    changed = {
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, start[name])
    }
    assert any("language_model" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)


def test_a_finished_run_answers_at_once(run_dir: Path) -> None:
    words = command("cluster.report", run_dir)
    answer = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "CHAIR_i" in answer.stdout

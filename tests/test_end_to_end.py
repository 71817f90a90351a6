"""The path of `make demo` (README, docs/results.md) on real parts, in small: BDHS pairs, then mixed online DPO on Ray,
vLLM and DeepSpeed, killed and resumed.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cluster.health.facts import nvidia_smi
from cluster.health.gpus import gpu_lines
from cluster.run.auditing import audit
from common.config import SHAPES_POLICY
from common.data.datasets import read_pairs
from tests.real_runs import (
    ROOT,
    command,
    events,
    kill_when,
    metric_lines,
    pickles_in,
    run_to_end,
    settings,
)

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.chaos]

STEPS = 6
ON_GPU = ("--rollout.num_gpus", "1") if gpu_lines(nvidia_smi()) else ()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("end_to_end")


@pytest.fixture(scope="module")
def offline(folder: Path) -> Path:
    out = folder / "bdhs"
    words = command("cluster.generate", "bdhs", "--out", out, "--count", "24", *ON_GPU)
    assert "accepted at attempt 1" in run_to_end(words, 400)
    return out


@pytest.fixture(scope="module")
def run_dir(folder: Path, offline: Path) -> Path:
    """A run that was killed without warning after its first checkpoint, and resumed."""
    run_dir = folder / "run"
    values = {
        "run.dir": run_dir,
        "data.offline.path": offline,
        "data.prompts.count": 100,
        "learner.num_steps": STEPS,
        "learner.global_batch": 8,
        "learner.micro_batch": 4,
        "checkpoint.interval": 2,
        "evaluation.suites.0.test_scenes": 8,
        "evaluation.suites.0.validation_scenes": 4,
    }
    preset = "cluster/configs/shapes_mixed.toml"
    words = command("cluster.train", preset, "--resume", *settings(values), *ON_GPU)

    def goes_on_after_a_checkpoint() -> bool:
        # The checkpoint is written beside the steps that follow it.
        is_saved = (run_dir / "checkpoints" / "step_000002").exists()
        return is_saved and len(metric_lines(run_dir)) >= 3

    kill_when(goes_on_after_a_checkpoint, words, folder / "first.log")
    assert "CHAIR_i" in run_to_end(words, 500)
    return run_dir


def test_offline_pairs_are_bdhs_pairs(offline: Path) -> None:
    pairs = read_pairs(offline)
    dropped = json.loads((offline / "stats.json").read_text())["dropped"]
    assert len(pairs) + sum(dropped.values()) == 24
    for pair in pairs:
        assert pair.chosen.text != pair.rejected.text
        assert pair.weight_version is None


def test_every_step_is_recorded_once_and_each_pair_trained_once(run_dir: Path) -> None:
    steps = [line["step"] for line in metric_lines(run_dir)]
    assert steps == list(range(1, STEPS + 1))
    assert len(events(run_dir, "resume")) == 1
    # Steps that the resume repeated count as it trained them.
    pairs_of_step = {}
    for event in events(run_dir, "step"):
        pairs_of_step[event["step"]] = event["pairs"]
    trained = []
    for step in range(1, STEPS + 1):
        trained += pairs_of_step[step]
    assert len(trained) == STEPS * 8
    groups = events(run_dir, "group")
    online = {event["id"] for event in groups if event["outcome"] == "pair"}
    fresh = [pair for pair in trained if pair in online]
    assert len(set(fresh)) == len(fresh)
    assert 0 < len(fresh) < len(trained)


def test_nothing_in_a_run_directory_is_pickled(run_dir: Path) -> None:
    (newest,) = (run_dir / "checkpoints").glob(f"step_{STEPS:06d}")
    assert (newest / "learner" / "learner.json").exists()
    assert pickles_in(run_dir) == []


def test_the_account_of_the_run_is_right(run_dir: Path) -> None:
    account = audit(run_dir)
    assert account.faults == []
    assert account.num_starts == 2
    assert account.num_trained_online > 0
    assert STEPS in account.checkpoints


def test_engines_proved_every_version(run_dir: Path) -> None:
    published = events(run_dir, "publish")
    assert published[-1]["version"] == STEPS
    assert published[-1]["change_norm"] > 0
    for event in published:
        assert max(event["probe_error"]) < 1e-3


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
    config = json.loads((run_dir / "config.json").read_text())
    assert config["learner"]["num_steps"] == STEPS
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
    start = AutoModelForImageTextToText.from_pretrained(ROOT / SHAPES_POLICY)
    start_weights = start.state_dict()
    changed = set()
    for name, value in model.state_dict().items():
        if not torch.equal(value, start_weights[name]):
            changed.add(name)
    assert any("language_model" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)


def test_a_finished_run_answers_at_once(run_dir: Path) -> None:
    assert "CHAIR_i" in run_to_end(command("cluster.report", run_dir), 60)

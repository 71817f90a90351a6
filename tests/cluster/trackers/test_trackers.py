"""Trackers with their real packages, offline: what a run measured is what each of them holds, under the same names."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from cluster.run.outcome import GroupOutcome
from cluster.trackers.trackers import PACKAGES, Trackers, check_installed
from common.config import RunConfig
from common.config.evaluation import Tracking, Wandb
from common.config.losses import Sigmoid
from common.data.images import ImageStore
from common.errors import UserError
from common.metrics import read_lines
from common.records import (
    Completion,
    Judged,
    Message,
    Part,
    PreferencePair,
    Prompt,
    Response,
    RolloutGroup,
    Verdict,
)
from learner.losses import pair_metrics
from learner.losses.pair_logps import PairLogps
from tests.cluster.runs import STEPS, make_config, run

VALUES = {"loss": 0.5, "rewards/margins": 0.25, "pairs/dropped/no <b>": 3.0}


def outcome_of(folder: Path) -> GroupOutcome:
    """A judged pair about a picture; its texts are no markup."""
    ref = ImageStore(folder / "images").add(Image.new("RGB", (300, 200), "red"))
    message = Message("user", (Part("image"), Part("text", "What | is it?")))
    prompt = Prompt("p", (message,), (ref,))
    texts = ("A red <b>square</b>.", "A | cat.")
    completions = [Completion((1,), text, 0, 0, "stop") for text in texts]
    group = RolloutGroup("0:p", prompt, (1, 2), 1, tuple(completions))
    sides = [Response(text) for text in texts]
    pair = PreferencePair("0:p", prompt, *sides, "online", 0)
    verdict = Verdict((1.0, -1.0), ("right", "wrong"))
    judged = Judged("0:p", (pair,), None, verdict, (0,), (1,))
    return GroupOutcome.of_judged(group, judged)


def config_with(tmp_path: Path, *trackers: str, interval: int = 2) -> RunConfig:
    return make_config(
        tmp_path,
        tracking__trackers=json.dumps(list(trackers)),
        tracking__interval=interval,
    )


def track(config: RunConfig, folder: Path, steps: range = range(1, 3)) -> Path:
    """Let the trackers see two steps and a group; returns the run's folder."""
    run_dir = folder / "run"
    run_dir.mkdir(exist_ok=True)
    trackers = Trackers(config, run_dir)
    trackers.open(steps.start)
    for step in steps:
        trackers.group(outcome_of(folder))
        trackers.step(step, VALUES)
    trackers.close()
    return run_dir


def board_of(run_dir: Path) -> Mapping[str, list[str]]:
    from tensorboard.backend.event_processing import event_accumulator

    board = event_accumulator.EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    tags: Mapping[str, list[str]] = board.Tags()
    return tags


def test_tensorboard_has_metrics_texts_and_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import event_accumulator

    run_dir = track(config_with(tmp_path), tmp_path)
    board = event_accumulator.EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == set(VALUES)
    assert [scalar.step for scalar in board.Scalars("loss")] == [1, 2]
    assert len(board.Tags()["images"]) == 4
    (tag,) = board.Tags()["tensors"]
    (event,) = board.Tensors(tag)
    table = event.tensor_proto.string_val[0].decode()
    # Text is text there, too.
    assert "<b>" not in table and "What &#124; is it?" in table
    assert table.count("\n") == 5


def test_a_run_writes_all_its_metrics_to_tensorboard(tmp_path: Path) -> None:
    _, run_dir = run(make_config(tmp_path))
    (*_, last) = read_lines(run_dir / "metrics.jsonl")
    scalars = set(board_of(run_dir)["scalars"])
    assert set(last) - {"step"} <= scalars
    assert len(read_lines(run_dir / "metrics.jsonl")) == STEPS
    assert "completions/mean_length" in scalars


def test_rewards_are_named_as_trl_names_them() -> None:
    """`pair_metrics`, which every learner step reports, and TRL's DPOTrainer write the same keys."""
    import torch

    logps = PairLogps(*[torch.zeros(2) for _ in range(6)])
    ours = pair_metrics(logps, Sigmoid())
    package = importlib.util.find_spec("trl")
    source = Path(package.origin).parent / "trainer" / "dpo_trainer.py"
    for name in ours:
        assert f'"{name}"' in source.read_text(), name


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    pytest.importorskip("wandb", reason="pip install wandb")
    run_dir = track(config_with(tmp_path, "wandb"), tmp_path)
    (folder,) = run_dir.glob("wandb/offline-run-*")
    # Its service is a process of its own, which may still write.
    end = time.monotonic() + 60
    while missing_of_wandb(folder) and time.monotonic() < end:
        time.sleep(0.1)
    assert missing_of_wandb(folder) == set()


def missing_of_wandb(folder: Path) -> set[str]:
    """Keys and kinds of files that an offline run's folder lacks."""
    (path,) = folder.glob("run-*.wandb")
    # A log of messages, in which keys stand as they are.
    content = path.read_bytes()
    wanted = {"step", "completions", *VALUES}
    missing = {name for name in wanted if name.encode() not in content}
    # Tables lie as JSON, their pictures under names of no kind.
    for file in folder.parent.rglob("*"):
        if file.is_file() and file.read_bytes().startswith(b"\x89PNG"):
            return missing
    return missing | {"a picture"}


def test_mlflow_in_a_folder_goes_on_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    config = config_with(tmp_path, "mlflow")
    run_dir = track(config, tmp_path)
    track(config, tmp_path, range(3, 5))
    from mlflow import MlflowClient

    client = MlflowClient((run_dir / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("sightline")
    (known,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(known.info.run_id, "rewards/margins")
    assert [metric.step for metric in history] == [1, 2, 3, 4]
    assert known.data.metrics["pairs/dropped/no _b_"] == 3.0
    assert known.data.params["learner.global_batch"] == "4"
    files = [file.path for file in client.list_artifacts(known.info.run_id)]
    assert "completions.json" in files
    assert known.info.status == "FINISHED"


def test_trackio_in_a_folder(tmp_path: Path) -> None:
    """In a process of its own: trackio takes its folder when it is imported."""
    pytest.importorskip("trackio", reason="pip install trackio")
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.cluster.trackers.test_trackers import config_with, track\n"
        "folder = Path(sys.argv[1])\n"
        "track(config_with(folder, 'trackio'), folder)\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "(name,) = SQLiteStorage.get_runs('sightline')\n"
        "import json; print(json.dumps(SQLiteStorage.get_logs('sightline', name), default=str))\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name != "TRACKIO_DIR"
    }
    answer = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    logs = json.loads(answer.stdout.splitlines()[-1])
    names = {name for line in logs for name in line}
    assert {"completions", *VALUES} <= names
    assert list((tmp_path / "run" / "trackio").rglob("*.db"))
    assert list((tmp_path / "run" / "trackio").rglob("*.png"))


def test_a_tracker_that_fails_is_told_once_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    # A file in the place of the folder that it would make.
    (run_dir / "tensorboard").write_text("")
    with caplog.at_level(logging.WARNING):
        track(config_with(tmp_path), tmp_path)
    said = [line for line in caplog.messages if "tensorboard" in line]
    assert len(said) == 1 and "gets nothing more" in said[0]


def test_a_package_that_is_not_there_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        check_installed(Wandb())
    assert set(PACKAGES) == {"wandb", "mlflow", "trackio"}


def test_trackers_by_bare_names_and_only_once() -> None:
    tracking = Tracking.model_validate({"trackers": ["wandb", {"kind": "mlflow"}]})
    assert [tracker.kind for tracker in tracking.trackers] == ["wandb", "mlflow"]
    with pytest.raises(ValueError, match="every kind of tracker once"):
        Tracking.model_validate({"trackers": ["wandb", "wandb"]})


def test_a_server_is_named_without_its_password() -> None:
    address = "http://me:secret@tracker:5000"
    with pytest.raises(ValidationError, match="MLFLOW_TRACKING_PASSWORD"):
        Tracking.model_validate({"trackers": [{"kind": "mlflow", "uri": address}]})

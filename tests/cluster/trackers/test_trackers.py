"""The trackers of a run: what they are told, and what happens when one of them fails."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.trackers.trackers import PACKAGES, Trackers, check_installed
from common.config.evaluation import Tracking, Wandb
from common.config.losses import Sigmoid
from common.errors import UserError
from common.metrics import read_lines
from learner.losses import pair_metrics
from learner.losses.pair_logps import PairLogps
from tests.cluster.runs import STEPS, killed_at, make_config, run
from tests.cluster.trackers.stories import config_with, track


def board_of(run_dir: Path) -> Mapping[str, list[str]]:
    from tensorboard.backend.event_processing import event_accumulator

    board = event_accumulator.EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    tags: Mapping[str, list[str]] = board.Tags()
    return tags


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


class Board:
    """A tracker that notes what it is told of the end."""

    ends: list[bool]

    def __init__(self, *_: object) -> None:
        pass

    def metrics(self, *_: object) -> None:
        pass

    completions = metrics

    def close(self, failed: bool) -> None:
        self.ends.append(failed)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the run failed, as a tracker is told at every end."""
    monkeypatch.setattr("cluster.trackers.trackers.TensorBoard", Board)
    ends: list[bool] = []
    monkeypatch.setattr(Board, "ends", ends, raising=False)
    return ends


def test_a_tracker_is_told_of_a_good_end(tmp_path: Path, ends: list[bool]) -> None:
    run(make_config(tmp_path))
    assert ends == [False]


def test_a_tracker_is_told_that_the_training_failed(
    tmp_path: Path, ends: list[bool]
) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        run(make_config(tmp_path), learner=killed_at(3))
    assert ends == [True]


def test_a_tracker_is_told_of_a_failure_after_the_training(
    tmp_path: Path, ends: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise UserError("policy: expected room on the disk, got none")

    monkeypatch.setattr("cluster.run.experiment.Experiment._take_best", fail)
    with pytest.raises(UserError, match="room on the disk"):
        run(make_config(tmp_path))
    assert ends == [True]


def test_a_training_that_begins_anew_may_still_end_well(
    tmp_path: Path, ends: list[bool]
) -> None:
    """The learner was lost: the first training failed, the run did not."""
    trackers = Trackers(make_config(tmp_path), tmp_path)
    trackers.open(1)
    trackers.open(1)
    trackers.close(failed=False)
    trackers.close(failed=True)
    assert ends == [True, False]


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

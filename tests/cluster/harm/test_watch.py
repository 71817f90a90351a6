"""Whole runs with a fake learner that drifts: warnings in the log, the journal and the report, also across a resume."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from cluster.evaluation.finished_run import read_run
from cluster.harm.watch import HarmWatch
from cluster.report import print_comparison, print_report
from cluster.run.auditing import audit
from cluster.run.recorder import Recorder
from common.metrics import read_lines
from common.records import Dropped, PreferencePair, StepResult
from reward.worker import RewardWorker
from tests.cluster.harm.groups import group, judged
from tests.cluster.runs import events, killed_at, make_config, run
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker


class DriftingLearner(FakeLearner):
    """Unlearns the end token, 0.01 nats a step."""

    async def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        result, dropped = await super().step(step, pairs)
        metrics = {**result.metrics, "drift/chosen_end": -0.01 * (step - 1)}
        return StepResult(step, metrics, result.pair_ids), dropped


class KilledDriftingLearner(killed_at(7), DriftingLearner):  # type: ignore[misc]
    """Dies in step 7, after the warning of step 6 and the checkpoint of step 4."""


class LongAnswers(FakeRolloutWorker):
    """The better answer is the longer one, and the judge is right."""

    phrases = ("yes", "There is a red circle at the top.")


def warnings(run_dir: Path) -> list[dict[str, Any]]:
    return events(run_dir, "warning")


def test_a_run_says_it_in_the_log_the_journal_and_the_report(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The mean of steps 2 to 6 is -0.03."""
    with caplog.at_level(logging.WARNING, "sightline"):
        _, run_dir = run(make_config(tmp_path), learner=DriftingLearner)
    (event,) = warnings(run_dir)
    assert (event["kind"], event["step"]) == ("end_token", 6)
    assert event["metric"] == "drift/chosen_end"
    said = [record.message for record in caplog.records if "drift/" in record.message]
    assert said == [f"step 6, since step {event['since']}: {event['text']}"]
    assert read_run(run_dir).warnings() == said
    capsys.readouterr()
    print_report(run_dir)
    assert f"training, {said[0]}" in capsys.readouterr().out
    print_comparison([read_run(run_dir)])
    assert f"A run, training, {said[0]}" in capsys.readouterr().out


def test_groups_are_in_the_metrics(tmp_path: Path) -> None:
    runtime, run_dir = run(make_config(tmp_path))
    lines = read_lines(run_dir / "metrics.jsonl")
    # Whoever watches the cluster sees the newest.
    assert runtime.shown == lines[-1]
    first = lines[0]
    assert first["completions/mean_length"] > 10
    assert 0 < first["completions/distinct_texts"] <= 1
    assert first["judge/num_longer"] >= 1
    assert audit(run_dir).faults == []


def test_a_resumed_run_goes_on_with_its_watch(tmp_path: Path) -> None:
    """Said in step 6, which the kill overwrites, and said again when the step is repeated: once in the report."""
    config = make_config(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=KilledDriftingLearner)
    _, run_dir = run(config, resume=True, learner=DriftingLearner)
    assert [event["step"] for event in warnings(run_dir)] == [6, 6]
    assert len(read_run(run_dir).warnings()) == 1
    account = audit(run_dir)
    assert account.faults == []
    assert account.overwritten["warning"] == 1


def test_a_start_from_the_beginning_overwrites_what_was_said(tmp_path: Path) -> None:
    """Killed before the first checkpoint: nothing says `resume`, and the second start has nothing to warn of."""
    config = make_config(tmp_path, checkpoint__interval=8)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=KilledDriftingLearner)
    _, run_dir = run(config, resume=True)
    assert events(run_dir, "resume") == []
    assert [event["step"] for event in warnings(run_dir)] == [6]
    assert read_run(run_dir).warnings() == []


def test_what_was_said_before_a_checkpoint_is_not_said_again(tmp_path: Path) -> None:
    config = make_config(tmp_path, checkpoint__interval=2)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=KilledDriftingLearner)
    _, run_dir = run(config, resume=True, learner=DriftingLearner)
    assert [event["step"] for event in warnings(run_dir)] == [6]


def test_a_learner_that_is_lost_shows_no_step_twice(tmp_path: Path) -> None:
    """A loop replays metrics.jsonl, also where the watch has seen it: 4 groups a step in 5 steps are 20, too few."""
    config = make_config(tmp_path)
    watch = HarmWatch(config)
    recorder = Recorder(tmp_path, watch)
    longer = {"judge/longer_wins": 1.0, "judge/num_longer": 4.0, "staleness/mean": 0.0}
    with recorder.training(config.learner, 0):
        for step in range(1, 5):
            recorder.step(step, longer)
        recorder.group("online", judged(group("a", "abc"), (0, 1)))
    with recorder.training(config.learner, 4):
        # The group was sampled after the last step, and will be again.
        assert watch.take() == {}
        assert watch.step(5, longer) == []


def test_the_switch_leaves_the_metrics(tmp_path: Path) -> None:
    config = make_config(tmp_path, loop__warnings__enabled=False)
    _, run_dir = run(config, learner=DriftingLearner)
    assert warnings(run_dir) == []
    last_line = read_lines(run_dir / "metrics.jsonl")[-1]
    assert "completions/mean_length" in last_line


def test_a_judge_of_length_is_noticed(tmp_path: Path) -> None:
    config = make_config(tmp_path, reward__judge__kind="rules", learner__global_batch=8)
    _, run_dir = run(config, rollout=LongAnswers, reward=RewardWorker)
    kinds = {event["kind"] for event in warnings(run_dir)}
    assert kinds == {"longer_wins"}

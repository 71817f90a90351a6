"""RLOO and GRPO in whole runs: all completions of a group or none, resume, and what GRPO knows of its sampling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.run.auditing import audit
from cluster.run.state import RunState
from common.config import RunConfig
from common.data.datasets import read_pairs
from common.errors import UserError
from common.metrics import read_lines
from common.records import Dropped, PreferencePair, StepResult
from tests.cluster.runs import (
    STEPS,
    events,
    killed_at,
    make_config,
    offline_set,
    run,
    trained_pairs,
)
from tests.fakes.learner import FakeLearner
from tests.fakes.policy import fake_logprobs

CHECKPOINT = 4
"""The step of the only one before the runs' end."""
KINDS = pytest.mark.parametrize("kind", ["rloo", "grpo"])


def config_of(tmp_path: Path, kind: str, **changes: Any) -> RunConfig:
    """Batches of 3 records from groups of 2 each: every second batch begins with what is left of a group."""
    values = {
        "learner.loss.kind": kind,
        "learner.loss.beta": 0.4,
        "learner.global_batch": 3,
        "rollout.num_completions": 4,
    }
    for name, value in changes.items():
        values[name.replace("__", ".")] = value
    return make_config(tmp_path, **values)


def pair_groups(run_dir: Path) -> list[dict[str, Any]]:
    """The groups that became pairs."""
    groups = events(run_dir, "group")
    return [event for event in groups if event["outcome"] == "pair"]


@KINDS
@pytest.mark.parametrize("max_staleness", [0, 1])
def test_all_completions_of_a_group_are_used_or_none(
    tmp_path: Path, kind: str, max_staleness: int
) -> None:
    config = config_of(tmp_path, kind, loop__max_staleness=max_staleness)
    _, run_dir = run(config)
    for event in events(run_dir, "step"):
        assert len(event["pairs"]) == 3
    trained = trained_pairs(run_dir)
    assert len(set(trained)) == len(trained)
    pair_ids: set[str] = set()
    for event in pair_groups(run_dir):
        assert event["source"] == kind
        assert list(event["pairs"]) == [f"{event['id']}#0", f"{event['id']}#1"]
        pair_ids.update(event["pairs"])
        assert len(event["completions"]) == 4
        assert sorted(event["chosen"] + event["rejected"]) == [0, 1, 2, 3]
        advantages = [sum(scores) for scores in event["pairs"].values()]
        assert sum(advantages) == pytest.approx(0, abs=1e-9)
    assert set(trained) <= pair_ids
    lines = read_lines(run_dir / "metrics.jsonl")
    assert max(line.get("staleness/max", 0) for line in lines) <= max_staleness
    assert audit(run_dir).faults == []


@KINDS
def test_a_killed_run_goes_on_and_trains_each_record_once(
    tmp_path: Path, kind: str
) -> None:
    config = config_of(tmp_path, kind)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(7))
    _, run_dir = run(config, resume=True)
    trained = trained_pairs(run_dir)
    assert len(trained) == STEPS * 3
    assert len(set(trained)) == len(trained)


@KINDS
def test_fresh_groups_of_even_size_are_wanted(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=f"must be even for the {kind} loss, got 3"):
        config_of(tmp_path, kind, rollout__num_completions=3)
    mixed = {
        "learner.loss.kind": kind,
        "learner.global_batch": 8,
        "mixture.kind": "ratio",
        "mixture.online_fraction": 0.5,
        "mixture.online_bdhs_fraction": 0.25,
        "data.offline.path": offline_set(tmp_path / "bdhs", "bdhs", 6),
    }
    wrong = rf"{kind} expects freshly judged groups, got pairs of bdhs, online_bdhs"
    with pytest.raises(UserError, match=rf"{wrong}.*source_losses\.bdhs"):
        run(make_config(tmp_path, **mixed))
    losses_of_the_others = {
        "learner.source_losses.bdhs.kind": "sigmoid",
        "learner.source_losses.online_bdhs.kind": "sigmoid",
        "run.dir": tmp_path / "good",
    }
    _, run_dir = run(make_config(tmp_path, **mixed, **losses_of_the_others))
    sources = {event["source"] for event in events(run_dir, "group")}
    assert sources == {kind, "online_bdhs"}


class Attentive(FakeLearner):
    """Remembers its batches."""

    batches: list[list[PreferencePair]]

    async def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        self.batches.append(list(pairs))
        return await super().step(step, pairs)


def attentive() -> type[Attentive]:
    """A learner with batches of its run alone."""
    return type("AttentiveOfOneRun", (Attentive,), {"batches": []})


def sides_of(pairs: Sequence[PreferencePair]) -> list[tuple[PreferencePair, Any]]:
    sides: list[tuple[PreferencePair, Any]] = []
    for pair in pairs:
        sides += [(pair, pair.chosen), (pair, pair.rejected)]
    return sides


def test_the_learner_gets_the_log_probs_that_the_engine_sampled_with(
    tmp_path: Path,
) -> None:
    """Of the same version, also where a checkpoint lay between sampling and training. What is kept has them as well."""
    config = config_of(tmp_path, "grpo")
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(7))
    learner = attentive()
    _, run_dir = run(config, resume=True, learner=learner)
    trained = [pair for batch in learner.batches for pair in batch]
    assert len(trained) == (STEPS - CHECKPOINT) * 3
    for pair, side in sides_of(trained):
        assert pair.weight_version is not None
        # The fake policy's weight is the number of pairs that it was trained on.
        weight = 3.0 * pair.weight_version
        expected = fake_logprobs(pair.prompt, side.token_ids, weight)
        assert side.token_logprobs == expected
    kept = {pair.id: pair for pair in read_pairs(run_dir / "pairs")}
    for pair in trained:
        assert kept[pair.id].chosen == pair.chosen
        assert kept[pair.id].rejected == pair.rejected


def test_other_runs_ask_for_no_log_probs(tmp_path: Path) -> None:
    learner = attentive()
    run(config_of(tmp_path, "rloo"), learner=learner)
    sides = sides_of([pair for batch in learner.batches for pair in batch])
    assert {side.token_logprobs for _, side in sides} == {None}


def test_a_state_keeps_every_digit_and_reads_states_without_log_probs(
    tmp_path: Path,
) -> None:
    learner = attentive()
    run(config_of(tmp_path, "grpo"), learner=learner)
    state = RunState.fresh(0)
    state.buffer.online.extend(learner.batches[0])
    text = state.to_json()
    assert RunState.model_validate_json(text) == state
    assert "token_logprobs" in text

    plain = RunState.model_validate_json(text).model_dump(mode="json", by_alias=True)
    for pair in plain["buffer"]["online"]:
        for side in ("chosen", "rejected"):
            del pair[side]["token_logprobs"]
    older = RunState.model_validate(plain)
    sides = sides_of(older.buffer.online)
    assert {side.token_logprobs for _, side in sides} == {None}

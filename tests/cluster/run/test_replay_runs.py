"""Runs whose online pairs are trained on twice and whose offline pairs are drawn by value: audited, killed, resumed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.run.auditing import audit
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

BOTH = {
    "mixture__kind": "ratio",
    "mixture__online_fraction": 0.5,
    "mixture__online_uses": 2,
    "mixture__offline_draw": "by_value",
    "learner__global_batch": 8,
    "loop__max_staleness": 2,
}
BATCH = 8
NUM_ONLINE = 4


def config_of(tmp_path: Path, **changes: Any) -> Any:
    pairs = offline_set(tmp_path / "bdhs", "bdhs", 10)
    return make_config(tmp_path, data__offline__path=pairs, **BOTH | changes)


def online_steps(run_dir: Path) -> list[list[str]]:
    """The online pairs of every step."""
    accepted = {
        group["id"] for group in events(run_dir, "group") if group["outcome"] == "pair"
    }
    steps = []
    for event in events(run_dir, "step"):
        steps.append([pair_id for pair_id in event["pairs"] if pair_id in accepted])
    return steps


def test_half_of_a_batch_was_in_the_one_before(tmp_path: Path) -> None:
    """4 online pairs a step: 4 fresh ones, then 2 fresh ones and 2 of the step before, those that arrived last."""
    _, run_dir = run(config_of(tmp_path))
    account = audit(run_dir)
    assert account.faults == []
    steps = online_steps(run_dir)
    fresh_before = steps[0]
    for now in steps[1:]:
        assert len(now) == len(set(now)) == NUM_ONLINE
        assert now[2:] == fresh_before[-2:]
        fresh_before = now[:2]
    uses = Counter(pair for step in steps for pair in step)
    assert max(uses.values()) == 2
    assert account.num_trained_online == STEPS * NUM_ONLINE
    assert account.num_reused == (STEPS - 1) * 2
    assert "stale" not in account.drops
    # As many were sampled as were needed: 4 for the first step and 2 for every other.
    assert account.num_accepted == 4 + (STEPS - 1) * 2
    reused = [event.get("reused", 0) for event in events(run_dir, "step")]
    assert reused == [0] + [2] * (STEPS - 1)
    line = read_lines(run_dir / "metrics.jsonl")[-1]
    assert line["pairs/reused"] == 2
    assert line["pairs/uses"] == 1.5
    assert line["staleness/max"] <= 2


@pytest.mark.parametrize("fatal_step", [6, 7])
def test_a_killed_run_trains_on_what_it_would_have_trained_on(
    tmp_path: Path, fatal_step: int
) -> None:
    """Its state goes through a checkpoint, with the pairs that come again and the margins of offline pairs."""
    values = {"rollout__deterministic": True, "loop__max_staleness": 1}
    _, calm = run(config_of(tmp_path / "calm", **values))
    config = config_of(tmp_path / "killed", **values)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(fatal_step))
    assert audit(tmp_path / "killed" / "run").faults == []
    _, killed = run(config, resume=True)
    assert trained_pairs(killed) == trained_pairs(calm)
    assert audit(calm).faults == audit(killed).faults == []


@pytest.mark.parametrize("max_staleness", [1, 3])
@pytest.mark.parametrize("kind", ["bernoulli", "ratio"])
def test_any_run_that_is_killed_adds_up(
    tmp_path: Path, kind: str, max_staleness: int
) -> None:
    values = {
        "mixture__kind": kind,
        "mixture__online_bdhs_fraction": 0.3,
        "loop__max_staleness": max_staleness,
    }
    config = config_of(tmp_path, **values)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(7))
    _, run_dir = run(config, resume=True)
    account = audit(run_dir)
    assert account.faults == []
    assert account.num_reused > 0
    assert account.num_trained_online + account.num_trained_offline == STEPS * BATCH


class Refusing(FakeLearner):
    """Refuses the last online pair of every third batch, which came again."""

    async def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        if step % 3:
            return await super().step(step, pairs)
        (*_, refused) = [pair for pair in pairs if pair.weight_version is not None]
        others = [pair for pair in pairs if pair is not refused]
        result, _ = await super().step(step, others)
        return result, [Dropped(refused.id, "too_long", "of a test")]


def test_a_pair_that_is_refused_when_it_comes_again_was_trained(tmp_path: Path) -> None:
    _, run_dir = run(config_of(tmp_path), learner=Refusing)
    account = audit(run_dir)
    assert account.faults == []
    assert account.drops["too_long"] == 2
    assert [event["uses"] for event in events(run_dir, "discard")] == [1, 1]
    assert account.num_trained_online == STEPS * NUM_ONLINE - 2
    # It gave no place back: nothing more was sampled for it.
    assert account.num_accepted == 4 + (STEPS - 1) * 2


def test_a_pair_that_is_trained_too_often_is_a_fault(tmp_path: Path) -> None:
    _, run_dir = run(config_of(tmp_path))
    path = run_dir / "config.json"
    values = json.loads(path.read_text())
    values["mixture"]["online_uses"] = 1
    path.write_text(json.dumps(values))
    assert any("online pairs trained twice" in fault for fault in audit(run_dir).faults)
    values["mixture"]["online_uses"] = 2
    values["loop"]["max_staleness"] = 0
    path.write_text(json.dumps(values))
    faults = audit(run_dir).faults
    assert faults
    assert all("stale pairs in step" in fault for fault in faults)


def test_offline_pairs_by_value_are_all_seen_and_never_twice_in_a_batch(
    tmp_path: Path,
) -> None:
    config = config_of(tmp_path, mixture__online_fraction=0, mixture__online_uses=1)
    _, run_dir = run(config)
    for event in events(run_dir, "step"):
        assert len(set(event["pairs"])) == BATCH
    line = read_lines(run_dir / "metrics.jsonl")[-1]
    assert line["offline/seen"] == 10
    assert line["offline/uses"] == STEPS * BATCH / 10
    # Two of the ten were not in the batch before.
    assert 1 < line["offline/effective"] < 2

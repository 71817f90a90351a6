"""MPO's running mean of rewards, and runs whose losses read no reference, through the learner."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import learner.losses
import learner.update
from common.data.images import ImageStore
from learner.learner import Learner
from learner.losses.reward_shift import RewardShift
from tests.learner.helpers import (
    TUNINGS,
    assert_same_arrays,
    losses_of,
    make_pairs,
    offline,
    run_config,
    spoil_losses,
    started,
    train,
    weights_of,
    written,
)

MPO = {"kind": "mpo", "beta": 0.5}


def test_the_mean_of_earlier_rewards_by_hand() -> None:
    """Two ranks; of four pairs the first and the last count: (1 + 2 - 3 + 4) / 4 = 1, then with 5 and 9: 18 / 6 = 3."""
    tables = [
        {"rewards/chosen": [1.0, 50.0], "rewards/rejected": [-3.0, 50.0]},
        {"rewards/chosen": [50.0, 2.0], "rewards/rejected": [50.0, 4.0]},
    ]
    start = RewardShift()
    assert start.mean == 0.0
    after_one = start.after(tables, [True, False, False, True])
    assert after_one.mean == 1.0
    # Rank 1 has no pair in the second step.
    tables = [{"rewards/chosen": [5.0], "rewards/rejected": [9.0]}, {}]
    after_two = after_one.after(tables, [True])
    assert after_two.mean == 3.0


def test_the_mean_comes_back_from_a_checkpoints_counters() -> None:
    shift = RewardShift(total=18.0, count=6)
    counters = {"step": 4, **shift.counters}
    assert RewardShift.of(counters) == shift
    unread = RewardShift()
    assert RewardShift.of(unread.counters) == unread


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_the_shift_of_each_step(
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
    micro_batch: int,
) -> None:
    """δ is the mean over mpo pairs of all earlier steps, and the same in all micro-batches of a step."""
    shifts: list[set[float]] = []
    original = learner.losses.pair_losses

    def seen(logps: Any, config: Any) -> torch.Tensor:
        if config.kind == "mpo":
            shifts[-1] |= set(logps.reward_shift.tolist())
        return original(logps, config)

    monkeypatch.setattr(learner.update, "pair_losses", seen)
    config = run_config(source_losses={"bdhs": MPO}, micro_batch=micro_batch)
    trainer = started(config)
    pairs = make_pairs(store, 6)
    expected = 0.0
    for step in range(4):
        shifts.append(set())
        trainer.step(step, pairs)
        assert list(shifts[-1]) == [pytest.approx(expected, rel=1e-6)]
        state = trainer.updater.reward_shift
        # Both sides of 3 of the 6 pairs.
        assert state.count == 6 * (step + 1)
        expected = state.total / state.count
    assert expected != 0


def test_a_skipped_step_leaves_it(
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = started(run_config(loss=MPO))
    pairs = make_pairs(store, 6)
    trainer.step(0, pairs)
    before = trainer.updater.reward_shift
    spoil_losses(monkeypatch, math.nan)
    trainer.step(1, pairs)
    assert trainer.updater.reward_shift == before


@TUNINGS
def test_a_resumed_run_equals_an_uninterrupted_one(
    store: ImageStore,
    tmp_path: Path,
    tuning: dict | None,
) -> None:
    def begin() -> Learner:
        return started(run_config(tuning=tuning, loss=MPO))

    batches = [make_pairs(store, 6, first) for first in (0, 6, 12, 18)]
    straight = begin()
    first, _ = losses_of(train(straight, batches[:2]))
    # 0.8·log 2 + 0.2·2·log 2 at the start, and the NLL on top.
    assert first > 1.2 * math.log(2)
    straight.save(tmp_path / "half")
    written(straight)
    expected = losses_of(train(straight, batches[2:], first_step=2))

    resumed = begin()
    resumed.load(tmp_path / "half")
    assert resumed.updater.reward_shift.count == 24
    assert resumed.updater.reward_shift.mean != 0
    assert losses_of(train(resumed, batches[2:], first_step=2)) == expected
    assert resumed.updater.reward_shift == straight.updater.reward_shift
    assert_same_arrays(weights_of(resumed), weights_of(straight))

    # Without the mean the loss is another one: what is compared above depends on it.
    forgetful = begin()
    forgetful.load(tmp_path / "half")
    forgetful.updater.reward_shift = RewardShift()
    (without_mean,) = losses_of(train(forgetful, batches[2:3], first_step=2))
    assert without_mean != expected[0]


SIMPO = {"kind": "simpo", "gamma": 0.5}


def test_without_a_loss_that_reads_it_the_reference_does_not_run(
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside a run whose other source would read it, so that the reference runs there."""
    pairs = offline(make_pairs(store, 6))
    simpo = started(run_config(loss=SIMPO))
    other_source = {"unseen": {"kind": "sigmoid"}}
    both = started(run_config(loss=SIMPO, source_losses=other_source))
    monkeypatch.setattr(simpo.reference, "forward", None)
    ours = train(simpo, [pairs] * 3)
    theirs = train(both, [pairs] * 3)
    rewards = ("rewards/chosen", "rewards/rejected", "rewards/margins")
    for actual, expected in zip(ours, theirs, strict=True):
        for name in ("loss", "grad_norm", *rewards):
            assert actual[name] == pytest.approx(expected[name], rel=1e-6), name
    assert ours[-1]["rewards/margins"] > 0.5


def test_without_a_loss_that_reads_it_no_reference_is_cached(
    store: ImageStore,
) -> None:
    trainer = started(run_config(loss=SIMPO))
    assert trainer.fast.fallbacks == {
        "reference_cache": "no loss of this run reads the reference"
    }
    assert trainer.fill_reference_cache(offline(make_pairs(store, 6))) == 0


def test_the_gate_at_checkpoints_asks_the_reference_all_the_same(
    store: ImageStore,
) -> None:
    trainer = started(run_config(loss=SIMPO))
    (metrics,) = train(trainer, [make_pairs(store, 6)], first_step=25)
    assert "grounding/gain" in metrics

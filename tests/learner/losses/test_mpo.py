"""MPO's running mean of rewards, and runs whose losses read no reference, through the learner."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import learner.losses
import learner.update
from common.data.images import ImageStore
from learner.learner import Learner
from learner.losses.reward_shift import RewardShift
from tests.learner.helpers import LORA, make_pairs, run_config

MPO = {"kind": "mpo", "beta": 0.5}


def started(**learner: Any) -> Learner:
    trainer = Learner(run_config(**learner))
    trainer.start()
    return trainer


def test_the_mean_of_earlier_rewards_by_hand() -> None:
    """Two ranks; of four pairs the first and the last count: (1 + 2 - 3 + 4) / 4 = 1, then with 5 and 9: 18 / 6 = 3."""
    tables = [
        {"rewards/chosen": [1.0, 50.0], "rewards/rejected": [-3.0, 50.0]},
        {"rewards/chosen": [50.0, 2.0], "rewards/rejected": [50.0, 4.0]},
    ]
    shift = RewardShift().after(tables, [True, False, False, True])
    assert (RewardShift().mean, shift.mean) == (0.0, 1.0)
    shift = shift.after(
        [{"rewards/chosen": [5.0], "rewards/rejected": [9.0]}, {}], [True]
    )
    assert shift.mean == 3.0
    assert RewardShift.of({"step": 4, **shift.counters}) == shift
    assert RewardShift.of(RewardShift().counters) == RewardShift()


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
    trainer = started(source_losses={"bdhs": MPO}, micro_batch=micro_batch)
    pairs, rewards = make_pairs(store, 6), []
    for step in range(4):
        shifts.append(set())
        trainer.step(step, pairs)
        state = trainer.reward_shift
        rewards.append((state.total, state.count))
    assert [count for _, count in rewards] == [6, 12, 18, 24], (
        "3 of 6 pairs, both sides"
    )
    assert shifts[0] == {0.0}
    for seen_shifts, (total, count) in zip(shifts[1:], rewards, strict=False):
        assert list(seen_shifts) == [pytest.approx(total / count, rel=1e-6)]
    assert rewards[-1][0] != 0


def test_a_skipped_step_leaves_it(
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, original = started(loss=MPO), learner.losses.pair_losses
    pairs = make_pairs(store, 6)
    trainer.step(0, pairs)
    before = trainer.reward_shift
    monkeypatch.setattr(
        learner.update, "pair_losses", lambda *args: original(*args) * float("nan")
    )
    trainer.step(1, pairs)
    assert trainer.reward_shift == before


@pytest.mark.parametrize("tuning", [None, LORA], ids=["full", "lora"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    store: ImageStore,
    tmp_path: Path,
    tuning: dict | None,
) -> None:
    batches = [make_pairs(store, 6, first) for first in (0, 6, 12, 18)]
    straight = started(tuning=tuning, loss=MPO)
    first = straight.step(0, batches[0])[0].metrics
    nll = first["loss"] - 1.2 * math.log(2)
    assert nll > 0, "0.8·log 2 + 0.2·2·log 2 + NLL at the start"
    straight.step(1, batches[1])
    straight.save(tmp_path / "half")
    expected = [
        straight.step(step, batches[step])[0].metrics["loss"] for step in (2, 3)
    ]
    resumed = started(tuning=tuning, loss=MPO)
    counters = resumed.load(tmp_path / "half")
    assert counters["reward_count"] == 24
    assert resumed.reward_shift.mean != 0
    assert [
        resumed.step(step, batches[step])[0].metrics["loss"] for step in (2, 3)
    ] == expected
    assert resumed.reward_shift == straight.reward_shift
    left, right = resumed.publish(4)[1], straight.publish(4)[1]
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)
    forgetful = started(tuning=tuning, loss=MPO)
    forgetful.load(tmp_path / "half")
    forgetful.reward_shift = RewardShift()
    assert forgetful.step(2, batches[2])[0].metrics["loss"] != expected[0], (
        "the shift shows in the loss"
    )


def test_without_a_loss_that_reads_it_the_reference_does_not_run(
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = [replace(pair, weight_version=None) for pair in make_pairs(store, 6)]
    simpo = {"kind": "simpo", "gamma": 0.5}
    trainer = started(loss=simpo)
    assert trainer.fast.fallbacks == {
        "reference_cache": "no loss of this run reads the reference"
    }
    both = started(loss=simpo, source_losses={"unseen": {"kind": "sigmoid"}})
    assert trainer.fill_reference_cache(pairs) == 0
    forward = trainer.reference.forward
    monkeypatch.setattr(trainer.reference, "forward", None)
    for step in range(3):
        ours = trainer.step(step, pairs)[0].metrics
        theirs = both.step(step, pairs)[0].metrics
        for name in (
            "loss",
            "grad_norm",
            "rewards/chosen",
            "rewards/rejected",
            "rewards/margins",
        ):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name
    assert ours["rewards/margins"] > 0.5
    monkeypatch.setattr(trainer.reference, "forward", forward)
    assert "grounding/gain" in trainer.step(25, pairs)[0].metrics, (
        "the gate asks it at checkpoints"
    )

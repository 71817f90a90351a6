"""Steps without a usable pair or a finite loss: they change no weight, and too many in a row end the run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

import learner.update
from common.config import Run
from common.data.images import ImageStore
from common.errors import UserError
from common.records import PreferencePair, Response
from learner.losses.pair_logps import PairLogps, pair_logps
from tests.learner.helpers import (
    change_norm,
    identical,
    make_pairs,
    run_config,
    spoil_losses,
    started,
    train,
)


def test_a_batch_without_a_usable_pair_changes_nothing(store: ImageStore) -> None:
    trainer = started(run_config())
    (pair,) = make_pairs(store, 1)
    result, dropped = trainer.step(0, [identical(pair)])
    assert result.pair_ids == ()
    assert result.metrics["steps_skipped"] == 1
    assert [drop.reason for drop in dropped] == ["pair_identical"]
    assert change_norm(trainer) == 0


def test_a_loss_that_is_not_finite_skips_the_step(
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = started(run_config())
    pairs = make_pairs(store, 6)
    spoil_losses(monkeypatch, math.nan)
    result, dropped = trainer.step(0, pairs)
    assert {drop.reason for drop in dropped} == {"step_skipped"}
    assert result.pair_ids == ()
    assert result.metrics["steps_skipped"] == 1
    assert change_norm(trainer) == 0
    # The next step trains again.
    monkeypatch.undo()
    result, dropped = trainer.step(1, pairs)
    assert len(result.pair_ids) == 6
    assert dropped == []
    assert result.metrics["steps_skipped"] == 1


@pytest.mark.parametrize(
    ("kind", "bad"), [("hinge", math.nan), ("hinge", -math.inf), ("sigmoid", -math.inf)]
)
def test_a_loss_that_is_not_finite_skips_the_step_though_its_gradient_is(
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    bad: float,
) -> None:
    """A bad value from the reference alone: the policy's gradient is 0 or -β, as of any other pair."""
    trainer = started(run_config(loss={"kind": kind}))

    def broken(*args: Any) -> PairLogps:
        logps = pair_logps(*args)
        return replace(logps, ref_rejected=logps.ref_rejected + bad)

    monkeypatch.setattr(learner.update, "pair_logps", broken)
    result, dropped = trainer.step(0, make_pairs(store, 6))
    assert {drop.reason for drop in dropped} == {"step_skipped"}
    assert result.pair_ids == ()
    assert change_norm(trainer) == 0


def test_a_run_that_stays_not_finite_stops_and_leaves_its_batch(
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Limit 2: bad, good, bad, bad stops; the good step between starts the count again."""
    config = run_config(max_skipped_steps=2)
    trainer = started(config.model_copy(update={"run": Run(dir=tmp_path)}))
    pairs = make_pairs(store, 3)
    for step, factor in enumerate((math.inf, 1, math.inf)):
        spoil_losses(monkeypatch, factor)
        trainer.step(step, pairs)
        monkeypatch.undo()
    spoil_losses(monkeypatch, math.inf)
    expected = r"got 2 steps in a row .*skipped_step_3\.json"
    with pytest.raises(UserError, match=expected) as caught:
        trainer.step(3, pairs)
    assert "\n" not in str(caught.value)
    saved = (tmp_path / "skipped_step_3.json").read_bytes()
    assert TypeAdapter(list[PreferencePair]).validate_json(saved) == pairs


def test_a_run_without_a_usable_pair_stops_and_says_why(store: ImageStore) -> None:
    """Limit 2: empty, good, empty, empty stops; the message counts what was refused since the good step."""
    trainer = started(run_config(max_skipped_steps=2))
    pair, *good = make_pairs(store, 3)
    same = identical(pair)
    empty = replace(pair, chosen=Response("", ()))
    train(trainer, [[same], good, [same, empty]])
    reasons = r"\{'pair_identical': 2, 'response_empty': 1\}"
    expected = f"got 2 batches in a row without one .*refused {reasons}"
    with pytest.raises(UserError, match=expected) as caught:
        trainer.step(3, [same])
    assert "\n" not in str(caught.value)

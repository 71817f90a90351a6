"""A row that cannot be collated, in a step of the learner and on all of its ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.chat import ChatEncoder
from common.data.images import ImageStore
from common.errors import UserError
from learner.batch.collate import Collator
from learner.learner import Learner
from tests.learner.helpers import run_config
from tests.learner.rank_threads import plans_of_ranks
from tests.row_faults.rows import (
    FAULTS,
    NUM_GOOD,
    REASONS,
    bad_pair,
    delete_picture,
    good_pairs,
    with_bad,
)


@FAULTS
def test_a_step_of_the_learner(store: ImageStore, model: Path, fault: str) -> None:
    good = good_pairs(store)
    pairs = with_bad(good, store, fault)
    if fault == "deleted_picture":
        delete_picture(store.root, pairs[2])
    metrics = []
    for batch in (good, pairs):
        trainer = Learner(run_config(model=model))
        trainer.start()
        result, dropped = trainer.step(1, batch)
        trainer.close()
        assert result.pair_ids == tuple(pair.id for pair in good)
        metrics.append(result.metrics)
    assert [(drop.id, drop.reason) for drop in dropped] == [("bad", REASONS[fault])]
    expected, measured = metrics
    for name in ("loss", "grad_norm", "logps/chosen", "rewards/margins"):
        assert measured[name] == expected[name], name


@FAULTS
def test_all_ranks_agree(
    store: ImageStore, model: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = with_bad(good_pairs(store), store, fault)
    if fault == "deleted_picture":
        delete_picture(store.root, pairs[2])
    ranks = [Collator(ChatEncoder(model, max_length=256)) for _ in range(2)]
    plans = plans_of_ranks(pairs, ranks, 2, monkeypatch)
    for plan in plans:
        assert [drop.reason for drop in plan.dropped] == [REASONS[fault]]
        assert len(plan.pairs) == NUM_GOOD
    first, second = [len(plan.micro_batches) for plan in plans]
    assert first == second


def test_a_short_run_without_a_pair_stops_at_its_last_step(
    store: ImageStore, model: Path
) -> None:
    """Two steps, with a limit of five empty ones in a row: it must not end well, either."""
    trainer = Learner(run_config(model=model, num_steps=2))
    trainer.start()
    bad = [bad_pair(store, "aspect_ratio")]
    trainer.step(1, bad)
    with pytest.raises(UserError, match=r"\{'processor': 2\}, such as processor \(bad"):
        trainer.step(2, bad)

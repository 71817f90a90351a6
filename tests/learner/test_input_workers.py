"""Rows that are made ready for the next step while the learner trains."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.config import Learner as LearnerConfig
from common.config import RunConfig
from common.data.images import ImageStore
from learner.learner import Learner
from tests.learner.helpers import (
    assert_same_arrays,
    make_pairs,
    run_config,
    started,
    weights_of,
    without_image,
)


@pytest.mark.real
def test_a_step_is_the_same_with_input_workers(store: ImageStore) -> None:
    """Bit by bit, with crops (mdpo) and noised images (povid)."""
    batches = [make_pairs(store, 4, first=4 * number) for number in range(3)]
    losses = {"loss": {"kind": "mdpo"}, "source_losses": {"bdhs": {"kind": "povid"}}}
    config = run_config(**losses, input_workers=1)
    alone = started(config.model_copy(update={"learner": without_workers(config)}))
    helped = started(config)
    ahead = helped.models.collator.ahead
    while not ahead.is_up:
        time.sleep(0.01)
    for step, batch in enumerate(batches, start=1):
        following = dict(enumerate(batches[step] if step < len(batches) else []))
        metrics = []
        for trainer in (helped, alone):
            trainer.prepare(step + 1, following)
            result, dropped = trainer.step(step, batch)
            assert not dropped
            metrics.append(without_times(result.metrics))
        assert metrics[0] == metrics[1]
        assert (ahead.num_ready_bytes > 0) == bool(following), "made meanwhile"
    helped.close()
    assert_same_arrays(weights_of(helped), weights_of(alone))


def without_times(metrics: Mapping[str, float]) -> dict[str, float]:
    return {
        name: value for name, value in metrics.items() if not name.startswith("time/")
    }


def without_workers(config: RunConfig) -> LearnerConfig:
    return config.learner.model_copy(update={"input_workers": 0})


def test_a_rank_begins_with_its_rows_and_with_the_filler(
    model_path: Path, store: ImageStore
) -> None:
    """Rank 1 of 2: places 1, 3 and 5, and of the others the first pair with a picture."""
    pairs = make_pairs(store, 6)
    pairs[0] = without_image(pairs[0])
    prepared: list[tuple[list[str], int]] = []
    collator: Any = SimpleNamespace(
        prepare=lambda pairs, step: prepared.append(([pair.id for pair in pairs], step))
    )
    trainer = Learner(run_config(), rank=1, world_size=2)
    trainer.models = SimpleNamespace(collator=collator)
    trainer.prepare(7, dict(enumerate(pairs)))
    trainer.prepare(7, {6: pairs[2], 7: pairs[4]})
    names = [
        [f"pair-{number}" for number in numbers] for numbers in ([1, 3, 5, 1], [4])
    ]
    assert prepared == [(names[0], 7), (names[1], 7)]

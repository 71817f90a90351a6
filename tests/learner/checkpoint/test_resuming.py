"""A learner that goes on from its checkpoint is the one that wrote it; damaged files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.data.images import ImageStore
from common.errors import UserError
from learner.learner import Learner
from tests.learner.helpers import (
    LORA,
    TUNINGS,
    assert_same_arrays,
    change_norm,
    losses_of,
    make_pairs,
    run_config,
    started,
    train,
    weights_of,
    written,
)


@TUNINGS
def test_a_resumed_run_equals_an_uninterrupted_one(
    store: ImageStore,
    tmp_path: Path,
    tuning: dict | None,
) -> None:
    if tuning is not None:
        # Dropout draws random numbers, so their state must be restored, too.
        tuning = {**tuning, "dropout": 0.2}
    batches = [make_pairs(store, 6, first) for first in (0, 6, 12, 18)]
    straight = started(run_config(tuning=tuning))
    train(straight, batches[:2])
    # What it writes meanwhile is the state of before these steps.
    straight.save(tmp_path / "half")
    expected = train(straight, batches[2:], first_step=2)
    torch.manual_seed(999)
    resumed = started(run_config(tuning=tuning))
    written(straight)
    assert resumed.load(tmp_path / "half") == []
    actual = train(resumed, batches[2:], first_step=2)
    assert losses_of(actual) == losses_of(expected)
    assert_same_arrays(weights_of(resumed), weights_of(straight))
    assert change_norm(resumed) == change_norm(straight) > 0


def test_damaged_checkpoints_are_refused(store: ImageStore, tmp_path: Path) -> None:
    trainer = started(run_config())
    trainer.step(0, make_pairs(store, 6))
    trainer.save(tmp_path / "good")
    written(trainer)
    with pytest.raises(UserError, match=r"expected learner\.json, got no such file"):
        trainer.load(tmp_path / "none")
    with pytest.raises(UserError, match="other trained weights"):
        started(run_config(tuning=LORA)).load(tmp_path / "good")
    for name in ("learner.json", "rank_0_000.safetensors", "rank_0_random.safetensors"):
        file = tmp_path / "good" / name
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        assert_refused(trainer, tmp_path / "good")
        file.unlink()
        assert_refused(trainer, tmp_path / "good")
        file.write_bytes(data)
    # Put together again, it can be loaded: nothing else was wrong.
    trainer.load(tmp_path / "good")


def assert_refused(trainer: Learner, folder: Path) -> None:
    """In one line."""
    expected = r"expected (the learner's (saved )?state|learner\.json)"
    with pytest.raises(UserError, match=expected) as caught:
        trainer.load(folder)
    assert "\n" not in str(caught.value)

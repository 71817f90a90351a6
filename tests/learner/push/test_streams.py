"""A streamed push carries what a gathered one does, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import learner.learner
from common.data.images import ImageStore
from common.weights import from_arrays
from learner.learner import Learner
from tests.learner.helpers import (
    LORA,
    TUNINGS,
    make_pairs,
    run_config,
    started,
    train,
)
from tests.learner.streams import streamed
from tests.probes import one_answer
from tests.tiny_models import TinyLlava, tiny_llava


def check_streamed(trainer: Learner) -> None:
    """Compare with `publish`: two ways through one model."""
    expected, arrays = trainer.publish(3)
    manifest, tensors = streamed(trainer, 3)
    assert manifest is not None
    assert expected is not None
    gathered = from_arrays(arrays)
    assert tensors.keys() == gathered.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == gathered[name].dtype
        assert torch.equal(tensor, gathered[name]), name
    assert manifest.version == 3
    assert manifest.probe == expected.probe
    assert manifest.num_tensors == expected.num_tensors
    assert manifest.change_norm == pytest.approx(expected.change_norm, rel=1e-6)
    assert (manifest.change_norm > 0) == (expected.change_norm > 0)


@TUNINGS
def test_what_is_streamed_is_what_is_published(
    store: ImageStore, tuning: dict[str, Any] | None
) -> None:
    trainer = started(run_config(tuning=tuning))
    trainer.set_probe(one_answer(make_pairs(store, 1)[0].prompt, (5, 6, 7)))
    check_streamed(trainer)
    manifest, _ = streamed(trainer, 1)
    assert manifest is not None
    # Exactly: nothing was trained.
    assert manifest.change_norm == 0
    train(trainer, [make_pairs(store, 6)])
    check_streamed(trainer)


def test_lines_of_the_log_carry_the_version_that_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted: list[int] = []
    monkeypatch.setattr(learner.learner, "note_version", noted.append)
    streamed(started(run_config()), 5)
    assert noted == [5]


def test_a_tied_head_travels_once_under_both_names() -> None:
    trainer = started(run_config(model=tiny_llava(TinyLlava(tied=True))))
    plan = trainer.plan_push()
    tied = [spec for spec in plan.tensors if spec.aliases]
    assert [spec.aliases for spec in tied] == [("lm_head.weight",)]
    check_streamed(trainer)


def test_weights_that_are_not_finite_are_seen(store: ImageStore) -> None:
    trainer = started(run_config(tuning=LORA))
    for name, parameter in trainer.policy.named_parameters():
        if "lora_A" in name:
            parameter.data[0, 0] = torch.nan
            break
    manifest, _ = streamed(trainer, 1)
    assert manifest is not None
    assert not manifest.change_norm < float("inf")


def test_a_quantised_base_is_dequantised_as_it_goes(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    tuning = {**LORA, "quantize": "nf4"}
    # Rows of 64 values, as bitsandbytes quantises them.
    trainer = started(run_config(tuning=tuning))
    check_streamed(trainer)

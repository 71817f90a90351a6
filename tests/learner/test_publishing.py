"""What a learner publishes: its trained policy under a plain model's names, without a trace in the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.data.images import ImageStore
from common.records import Prompt
from common.weights import checksum
from learner.learner import Learner
from learner.model.policy import load_model
from tests.learner.helpers import (
    LORA,
    PROBE,
    TUNINGS,
    assert_same_arrays,
    change_norm,
    make_pairs,
    model_of_push,
    probed,
    run_config,
    started,
    train,
    weights_of,
    written,
)
from tests.probes import one_answer, token_logprobs
from tests.tiny_models import TinyLlava, tiny_llava


def trained(
    store: ImageStore,
    tuning: dict | None,
) -> tuple[Learner, Prompt]:
    """A learner with three steps and a probe, and the probe's prompt."""
    trainer = started(run_config(tuning=tuning))
    pairs = make_pairs(store, 6)
    prompt = pairs[0].prompt
    trainer.set_probe(one_answer(prompt, PROBE))
    assert change_norm(trainer) == 0
    train(trainer, [pairs] * 3)
    return trainer, prompt


@TUNINGS
def test_the_manifest_describes_what_is_sent(
    store: ImageStore,
    model_path: Path,
    tuning: dict | None,
) -> None:
    """All tensors of the plain model: LoRA comes merged."""
    trainer, _ = trained(store, tuning)
    manifest, arrays = trainer.publish(1)
    assert manifest is not None
    assert manifest.version == 1
    assert manifest.change_norm > 1e-2
    assert manifest.checksum == checksum(arrays)
    num_tensors = len(load_model(model_path, torch.float32).state_dict())
    assert manifest.num_tensors == len(arrays) == num_tensors
    assert manifest.num_bytes == sum(array.nbytes for array in arrays.values())


@TUNINGS
def test_what_is_sent_is_the_trained_policy(
    store: ImageStore,
    model_path: Path,
    tmp_path: Path,
    tuning: dict | None,
) -> None:
    """Its log-probs, not the base's, when a fresh model takes the arrays over; the probe says the same."""
    trainer, prompt = trained(store, tuning)
    manifest, arrays = trainer.publish(1)
    assert manifest is not None
    assert manifest.probe is not None
    start = load_model(model_path, torch.float32)
    base = probed(start, trainer, prompt)
    model = model_of_push(arrays, model_path, tmp_path / "pushed")
    sent = probed(model, trainer, prompt)
    np.testing.assert_allclose(token_logprobs(manifest.probe), sent.numpy(), atol=1e-4)
    assert (sent - base).abs().max() > 1e-2


@TUNINGS
def test_published_arrays_do_not_follow_the_training(
    store: ImageStore,
    tuning: dict | None,
) -> None:
    trainer, _ = trained(store, tuning)
    _, arrays = trainer.publish(1)
    before = checksum(arrays)
    trainer.step(3, make_pairs(store, 6))
    assert checksum(arrays) == before


def test_publishing_does_not_disturb_training(
    store: ImageStore,
    tmp_path: Path,
) -> None:
    pairs = make_pairs(store, 6)
    disturbed = started(run_config(tuning=LORA))
    quiet = started(run_config(tuning=LORA))
    disturbed.set_probe(one_answer(pairs[0].prompt, (5, 6)))
    for step in range(3):
        disturbed.step(step, pairs)
        disturbed.publish(step)
        disturbed.export(tmp_path / "export")
        written(disturbed)
        quiet.step(step, pairs)
    assert_same_arrays(weights_of(disturbed), weights_of(quiet))


def test_a_tied_head_is_sent_and_exported(store: ImageStore, tmp_path: Path) -> None:
    trainer = started(run_config(model=tiny_llava(TinyLlava(tied=True))))
    trainer.step(0, make_pairs(store, 6))
    arrays = weights_of(trainer)
    np.testing.assert_array_equal(
        arrays["lm_head.weight"],
        arrays["language_model.model.embed_tokens.weight"],
    )
    trainer.export(tmp_path / "out")
    written(trainer)
    assert load_model(tmp_path / "out", torch.float32) is not None

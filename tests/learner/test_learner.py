"""The learner on the plain torch engine; `test_engines` runs the same class on DeepSpeed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.chat import ChatEncoder
from common.config import Learner as LearnerConfig
from common.config.losses import Sigmoid
from common.data.images import ImageStore
from common.errors import UserError
from common.records import Response
from learner.batch.collate import Collator
from learner.batch.plan import MicroSize, plan_batch
from learner.learner import Learner
from learner.losses.objective import Objective
from learner.update import accumulate
from tests.learner.helpers import (
    LORA,
    TUNINGS,
    assert_same_arrays,
    diverged_policies,
    encoder_of,
    gradients,
    identical,
    make_pairs,
    models_of,
    run_config,
    started,
    train,
    weights_of,
    with_model,
)


def test_start_counts_parameters() -> None:
    facts = Learner(run_config()).start()
    assert facts["num_params"] > facts["num_trainable_params"] > 0
    assert facts["device"] == "cpu"
    assert facts["world_size"] == 1
    lora = Learner(run_config(tuning=LORA)).start()
    assert lora["num_trainable_params"] < facts["num_trainable_params"] / 10


@TUNINGS
def test_training_raises_the_margin(store: ImageStore, tuning: dict | None) -> None:
    trainer = started(run_config(tuning=tuning))
    metrics = train(trainer, [make_pairs(store, 6)] * 5)
    first, last = metrics[0], metrics[-1]
    # Policy = reference.
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert last["loss"] < first["loss"]
    assert last["rewards/accuracies"] == 1.0


def test_what_a_step_says(store: ImageStore) -> None:
    """6 pairs, of two sources in turn."""
    trainer = started(run_config())
    pairs = make_pairs(store, 6)
    trainer.step(0, pairs)
    result, _ = trainer.step(1, pairs)
    assert result.step == 1
    assert result.pair_ids == tuple(pair.id for pair in pairs)
    metrics = result.metrics
    assert metrics["pairs/online"] == 3
    assert metrics["pairs/bdhs"] == 3
    assert metrics["pairs/trained"] == 6
    by_source = [metrics["rewards/margins/online"], metrics["rewards/margins/bdhs"]]
    assert np.mean(by_source) == pytest.approx(metrics["rewards/margins"])
    assert tuple(result.margins) == result.pair_ids
    by_pair = list(result.margins.values())
    assert np.mean(by_pair) == pytest.approx(metrics["rewards/margins"])
    assert np.mean(by_pair[::2]) == pytest.approx(metrics["rewards/margins/online"])
    others = {"lr", "grad_norm", "rewards/chosen", "logps/rejected"}
    assert others <= metrics.keys()
    assert 0 < metrics["time/input_s"] < metrics["time/step_s"]
    num_tokens = 0
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            num_tokens += len(encoder_of(trainer).encode_response(side.text))
    assert metrics["tokens"] == num_tokens


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_micro_batches_add_up_to_one_big_batch(
    model_path: Path,
    store: ImageStore,
    micro_batch: int,
) -> None:
    """Float64, so that equal means equal: 7 pairs in micro-batches of 1, 3 or 4 against one of 8."""
    policies = diverged_policies(model_path, 0.05)
    policy, _ = policies
    collator = Collator(ChatEncoder(model_path, 256))
    models = models_of(policies, collator)
    pairs = make_pairs(store, 7)
    config = LearnerConfig(loss=Sigmoid(nll_weight=0.1))

    def gradients_of(size: int) -> dict[str, torch.Tensor]:
        policy.zero_grad()
        plan = plan_batch(pairs, collator, MicroSize(size), 0, 1)
        accumulate(models, plan, Objective.of(config, pairs))
        return gradients(policy)

    expected = gradients_of(8)
    torch.testing.assert_close(
        gradients_of(micro_batch), expected, atol=1e-12, rtol=1e-9
    )


def test_refused_pairs_come_back_and_do_not_count(store: ImageStore) -> None:
    mixed = started(run_config())
    clean = started(run_config())
    good = make_pairs(store, 4)
    same = replace(identical(good[0]), id="same")
    with_image_token = Response("", (5, encoder_of(mixed).image_token_id))
    media = replace(good[0], id="media", chosen=with_image_token)
    result, dropped = mixed.step(0, [same, *good, media])
    assert [(drop.id, drop.reason) for drop in dropped] == [
        ("same", "pair_identical"),
        ("media", "response_media"),
    ]
    assert result.pair_ids == tuple(pair.id for pair in good)
    assert result.metrics["pairs/trained"] == 4
    clean.step(0, good)
    assert_same_arrays(weights_of(mixed), weights_of(clean))


def test_torch_trains_float32_only() -> None:
    config = with_model(run_config(), dtype="bfloat16")
    with pytest.raises(UserError, match=r"set learner\.engine = deepspeed"):
        Learner(config).start()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_gpu_is_said_at_once() -> None:
    with pytest.raises(UserError, match="expected a CUDA device"):
        Learner(run_config(num_gpus=1)).start()

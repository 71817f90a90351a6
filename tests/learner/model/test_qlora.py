"""QLoRA on the tiny model: 4-bit base, adapters trained, and what leaves the learner is what was trained."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from common.chat import ChatEncoder
from common.config import Lora, Model, RunConfig
from common.data.images import ImageStore
from common.errors import UserError
from learner.batch.collate import RowBatch
from learner.learner import Learner
from learner.model import quantized
from learner.model.policy import Policy, load_model, load_policy
from learner.model.reference_cache import identity
from tests.learner.helpers import (
    LORA,
    assert_same_arrays,
    losses_of,
    make_pairs,
    model_of_push,
    run_config,
    started,
    train,
    weights_of,
    written,
)
from tests.probes import one_answer, token_logprobs
from tests.tiny_families import tiny_qwen

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
QLORA = {**LORA, "quantize": "nf4"}


def test_without_the_package_it_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    model_path: Path,
) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="expected the package bitsandbytes") as caught:
        load_policy(Model(tuning=Lora(quantize="nf4")), model_path)
    assert "\n" not in str(caught.value)


def test_the_reference_cache_knows_the_base(model_path: Path) -> None:
    """Log-probs of the quantised base are others than those of the plain one."""
    encoder = ChatEncoder(model_path, 256)
    plain = identity(encoder, torch.float32)
    assert identity(encoder, torch.float32, "none") == plain
    assert identity(encoder, torch.float32, "nf4") != plain


def trained(
    config: RunConfig,
    store: ImageStore,
    num_steps: int = 3,
) -> tuple[Learner, list[float]]:
    """A learner after steps on one batch, and the losses of these steps."""
    trainer = started(config)
    batches = [make_pairs(store, 6)] * num_steps
    return trainer, losses_of(train(trainer, batches))


def packed(trainer: Learner) -> dict[str, torch.Tensor]:
    """Copies of the 4-bit weights by name: two to a byte."""
    copies = {}
    for name, parameter in trainer.policy.named_parameters():
        if parameter.dtype == torch.uint8:
            copies[name] = parameter.data.clone()
    return copies


@needs_bitsandbytes
@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_only_the_language_side_is_in_four_bits(name: str, model_path: Path) -> None:
    path = model_path if name == "llava" else tiny_qwen()
    policy = load_policy(Model(tuning=Lora.model_validate(QLORA)), path)
    names = set()
    for peft_name, parameter in policy.named_parameters():
        if parameter.dtype == torch.uint8:
            names.add(peft_name.removeprefix("net.base_model.model."))
    assert len(names) == 2 * 7, "two layers of seven projections"
    for quantised_name in names:
        assert quantised_name.startswith("model.language_model.layers.")
    assert not hasattr(policy.model.config, "quantization_config")


@needs_bitsandbytes
def test_steps_train_the_adapters_and_leave_the_base(store: ImageStore) -> None:
    trainer = started(run_config(tuning=QLORA))
    before = packed(trainer)
    assert before
    metrics = train(trainer, [make_pairs(store, 6)] * 4)
    first, last = metrics[0], metrics[-1]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5), (
        "the quantised base is the reference"
    )
    assert last["loss"] < first["loss"]
    assert last["steps_skipped"] == 0
    after = packed(trainer)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


PROBE = (5, 6, 7)
"""Token ids of the response whose log-probs are compared."""


@pytest.fixture(scope="module")
def trainer(store: ImageStore) -> Learner:
    """Three steps old, with a probe; the tests that share it do not train it."""
    trained_one, _ = trained(run_config(tuning=QLORA), store)
    (pair,) = make_pairs(store, 1)
    trained_one.set_probe(one_answer(pair.prompt, PROBE))
    return trained_one


@pytest.fixture
def batch(trainer: Learner, store: ImageStore) -> RowBatch:
    """The probe as a row."""
    (pair,) = make_pairs(store, 1)
    return trainer.models.collator.single(pair.prompt, PROBE)


@torch.no_grad()
def logps_of(policy: Policy, batch: RowBatch, **options: bool) -> torch.Tensor:
    return policy(batch, **options).token_logps


@needs_bitsandbytes
def test_training_and_evaluation_mode_compute_the_same(
    trainer: Learner,
    batch: RowBatch,
) -> None:
    policy = trainer.policy
    in_training = logps_of(policy, batch)
    policy.eval()
    in_evaluation = logps_of(policy, batch)
    policy.train()
    torch.testing.assert_close(in_evaluation, in_training, atol=1e-6, rtol=0)


@needs_bitsandbytes
def test_four_bits_and_training_are_seen(
    trainer: Learner,
    batch: RowBatch,
    model_path: Path,
) -> None:
    """Trained policy, quantised base and plain model are three: else the comparisons below would compare nothing."""
    trained_logps = logps_of(trainer.policy, batch)
    base = logps_of(trainer.policy, batch, adapters=False)
    plain_model = load_model(model_path, torch.float32).eval()
    plain = logps_of(Policy(plain_model), batch)
    assert (trained_logps - base).abs().max() > 1e-3
    assert (plain - base).abs().max() > 1e-3


@needs_bitsandbytes
def test_the_export_is_the_policy_that_was_trained(
    trainer: Learner,
    batch: RowBatch,
    tmp_path: Path,
) -> None:
    """Dequantised and merged."""
    out = tmp_path / "out"
    trainer.export(out)
    written(trainer)
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    exported = Policy(load_model(out, torch.float32).eval())
    expected = logps_of(trainer.policy, batch)
    torch.testing.assert_close(logps_of(exported, batch), expected, atol=1e-4, rtol=0)


@needs_bitsandbytes
def test_the_push_is_the_policy_that_was_trained(
    trainer: Learner,
    batch: RowBatch,
    model_path: Path,
    tmp_path: Path,
) -> None:
    """Dequantised and merged, into the plain model; the probe has the trained policy's log-probs."""
    manifest, arrays = trainer.publish(1)
    assert manifest is not None
    assert manifest.change_norm > 0
    model = model_of_push(arrays, model_path, tmp_path / "pushed")
    pushed = Policy(model.eval())
    expected = logps_of(trainer.policy, batch)
    torch.testing.assert_close(logps_of(pushed, batch), expected, atol=1e-4, rtol=0)
    probed = token_logprobs(manifest.probe)
    assert probed == pytest.approx(expected[0].tolist(), abs=1e-5)


@needs_bitsandbytes
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(
    store: ImageStore,
    tmp_path: Path,
) -> None:
    first, _ = trained(run_config(tuning=QLORA), store, 2)
    first.save(tmp_path / "state")
    written(first)
    second = started(run_config(tuning=QLORA))
    second.load(tmp_path / "state")
    batches = [make_pairs(store, 6)]
    straight = train(first, batches, first_step=2)
    resumed = train(second, batches, first_step=2)
    assert losses_of(straight) == losses_of(resumed)
    assert_same_arrays(weights_of(first), weights_of(second))


@needs_bitsandbytes
@pytest.mark.real
def test_on_deepspeed(store: ImageStore) -> None:
    """The same losses as on the plain engine."""
    learner, losses = trained(run_config("deepspeed", QLORA), store)
    learner.close()
    _, expected = trained(run_config(tuning=QLORA), store)
    assert losses == pytest.approx(expected, abs=1e-4)

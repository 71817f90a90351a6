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
from common.weights import from_arrays, hub_name
from learner.learner import Learner
from learner.model import quantized
from learner.model.policy import Policy, load_model, load_policy
from learner.model.reference_cache import identity
from tests.learner.helpers import LORA, make_pairs, run_config
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
    learner = Learner(config)
    learner.start()
    losses = []
    for step in range(num_steps):
        result, _ = learner.step(step, make_pairs(store, 6))
        losses.append(result.metrics["loss"])
    return learner, losses


def packed(learner: Learner) -> dict[str, torch.Tensor]:
    return {
        name: p.data.clone()
        for name, p in learner.policy.named_parameters()
        if p.dtype == torch.uint8
    }


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
    learner = Learner(run_config(tuning=QLORA))
    learner.start()
    before = packed(learner)
    assert before
    pairs = make_pairs(store, 6)
    metrics = [learner.step(step, pairs)[0].metrics for step in range(4)]
    assert metrics[0]["loss"] == pytest.approx(np.log(2), abs=1e-5), (
        "the quantised base is the reference"
    )
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert metrics[-1]["steps_skipped"] == 0
    after = packed(learner)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@needs_bitsandbytes
def test_the_export_and_the_push_are_the_policy_that_was_trained(
    store: ImageStore,
    model_path: Path,
    tmp_path: Path,
) -> None:
    """Dequantised and merged: the quantised policy's log-probs, in evaluation as in training mode."""
    learner, _ = trained(run_config(tuning=QLORA), store)
    prompt = make_pairs(store, 1)[0].prompt
    learner.set_probe(prompt, (5, 6, 7))
    batch = learner.models.collator.single(prompt, (5, 6, 7))
    with torch.no_grad():
        own = learner.policy(batch).token_logps
        learner.policy.eval()
        torch.testing.assert_close(
            learner.policy(batch).token_logps, own, atol=1e-6, rtol=0
        )
        learner.policy.train()
        base = learner.policy(batch, adapters=False).token_logps
    learner.export(tmp_path / "out")
    exported_config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in exported_config
    exported = Policy(load_model(tmp_path / "out", torch.float32).eval())
    manifest, arrays = learner.publish(1)
    assert manifest is not None
    assert manifest.change_norm > 0
    assert manifest.probe is not None
    pushed = Policy(load_model(model_path, torch.float32).eval())
    sent = from_arrays(arrays)
    with torch.no_grad():
        for name, parameter in pushed.net.named_parameters():
            parameter.copy_(sent[hub_name(name)])
        for policy in (exported, pushed):
            logps = policy(batch).token_logps
            torch.testing.assert_close(logps, own, atol=1e-4, rtol=0)
        assert (own - base).abs().max() > 1e-3
        plain = Policy(load_model(model_path, torch.float32).eval())(batch).token_logps
        assert (plain - base).abs().max() > 1e-3, "four bits are seen"
    assert manifest.probe.token_logprobs == pytest.approx(own[0].tolist(), abs=1e-5)


@needs_bitsandbytes
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(
    store: ImageStore,
    tmp_path: Path,
) -> None:
    first, _ = trained(run_config(tuning=QLORA), store, 2)
    first.save(tmp_path / "state")
    second = Learner(run_config(tuning=QLORA))
    second.start()
    second.load(tmp_path / "state")
    pairs = make_pairs(store, 6)
    straight, _ = first.step(2, pairs)
    resumed, _ = second.step(2, pairs)
    assert straight.metrics["loss"] == resumed.metrics["loss"]
    _, straight_weights = first.publish(1)
    _, resumed_weights = second.publish(1)
    for name, value in straight_weights.items():
        np.testing.assert_array_equal(value, resumed_weights[name])


@needs_bitsandbytes
@pytest.mark.real
def test_on_deepspeed(store: ImageStore) -> None:
    """The same losses as on the plain engine."""
    learner, losses = trained(run_config("deepspeed", QLORA), store)
    learner.close()
    _, expected = trained(run_config(tuning=QLORA), store)
    assert losses == pytest.approx(expected, abs=1e-4)

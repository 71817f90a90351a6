"""Exchanged decoder layers equal transformers' tiny, in float64 and gradients included, for every proven family."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from common.config import Lora
from common.data.images import ImageStore
from common.model_parts import language_model
from learner.forward.decoder import is_installed, why_not
from learner.forward.tree import tree_batch
from learner.forward.tree_logps import prepare, tree_logps
from learner.learner import Learner
from learner.model.peft_api import add_lora
from learner.model.policy import Policy
from learner.model.vision_features import VisionShare
from tests.learner.families import FAMILIES, Family, family
from tests.learner.helpers import LORA, assert_same_weights, make_pairs, run_config
from tests.learner.trees import (
    Rows,
    assert_same_gradients,
    gradients,
    pairs_of,
    plain,
    tree_model,
)

EACH_FAMILY = pytest.mark.parametrize("name", FAMILIES)

NARROW = {"atol": 2e-5, "rtol": 1e-6}
"""Summed log-probs: transformers' norms round to float32 in any model."""


def exchanged(tiny: Family) -> Any:
    model = copy.deepcopy(tiny.model)
    assert why_not(language_model(model), model.config.vision_config) is None
    prepare(model, fused_layers=True)
    return model


@pytest.fixture
def wide_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain formula in the model's own dtype in place of transformers' norms: then nothing but order differs."""

    def norm(self: Any, hidden: Tensor) -> Tensor:
        mean_square = hidden.pow(2).mean(-1, keepdim=True)
        root = (mean_square + self.variance_epsilon).sqrt()
        return self.weight * hidden / root

    for name in ("llava", "qwen2_5_vl", "qwen3_vl"):
        norm_class = type(language_model(family(name).model).norm)
        monkeypatch.setattr(norm_class, "forward", norm)


@EACH_FAMILY
@pytest.mark.usefixtures("wide_norms", "attention")
def test_equal_to_the_plain_forward_with_gradients(name: str) -> None:
    tiny = family(name)
    pairs = pairs_of(tiny)
    expected = plain(tiny.model, pairs)
    model = exchanged(tiny)
    logps = tree_logps(model, tree_batch(pairs))
    torch.testing.assert_close(logps.summed, expected, atol=1e-9, rtol=1e-9)
    actual_gradients = gradients(model, logps.summed)
    expected_gradients = gradients(tiny.model, expected)
    tiny.model.zero_grad()
    assert_same_gradients(actual_gradients, expected_gradients)
    for key, value in expected_gradients.items():
        if "language_model.layers" in key:
            error = (actual_gradients[key] - value).norm()
            assert error <= 1e-10 * value.norm() + 1e-12, key


@EACH_FAMILY
def test_equal_to_transformers_up_to_its_float32_norms(name: str) -> None:
    tiny = family(name)
    pairs = pairs_of(tiny)
    with torch.no_grad():
        actual = tree_logps(exchanged(tiny), tree_batch(pairs)).summed
        expected = plain(tiny.model, pairs)
    torch.testing.assert_close(actual, expected, **NARROW)


@EACH_FAMILY
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    tiny = family(name)
    model = exchanged(tiny).train()
    batch = tree_batch(pairs_of(tiny))
    expected = tree_logps(model, batch).summed
    expected_gradients = gradients(model, expected)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    actual = tree_logps(model, batch).summed
    assert torch.equal(actual, expected)
    for key, value in gradients(model, actual).items():
        torch.testing.assert_close(
            value,
            expected_gradients[key],
            atol=1e-12,
            rtol=1e-12,
        )


def disturb_adapters(model: nn.Module) -> None:
    """New adapters add nothing, because B is 0; these do."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)


@EACH_FAMILY
@pytest.mark.usefixtures("wide_norms")
def test_lora(name: str) -> None:
    tiny = family(name)
    projections = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    config = LoraConfig(r=2, target_modules=rf".*language_model.*\.({projections})")
    plain_model = get_peft_model(copy.deepcopy(tiny.model), config).double().eval()
    disturb_adapters(plain_model)
    model = copy.deepcopy(plain_model)
    prepare(model.get_base_model(), fused_layers=True)
    pairs = pairs_of(tiny)[:3]
    expected = plain(plain_model.get_base_model(), pairs)
    actual = tree_logps(model.get_base_model(), tree_batch(pairs)).summed
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)
    assert_same_gradients(gradients(model, actual), gradients(plain_model, expected))


@EACH_FAMILY
@pytest.mark.usefixtures("wide_norms")
@pytest.mark.parametrize(
    ("sides", "share"),
    [
        (("language",), "features"),
        (("language", "projector"), "tower"),
        (("language", "vision"), "nothing"),
    ],
)
def test_adapters_off_are_the_base_model(
    name: str,
    sides: tuple[Any, ...],
    share: str,
) -> None:
    """With adapters that change every log-prob, and with what policy and reference share of the vision side."""
    tiny = family(name)
    tuning = Lora(r=2, alpha=4, sides=sides)
    policy = Policy(add_lora(copy.deepcopy(tiny.model), tuning)).double()
    disturb_adapters(policy)
    prepare(policy.model, fused_layers=True)
    policy.vision = VisionShare(policy.model, 1 << 30)
    assert policy.vision.share == share
    pairs = pairs_of(tiny)
    batch = tree_batch(pairs)
    with torch.no_grad():
        expected = plain(tiny.model, pairs)
        trained = policy(batch).summed
        base = policy(batch, adapters=False).summed
        again = policy(batch).summed
    torch.testing.assert_close(base, expected, atol=1e-9, rtol=1e-9)
    assert (trained - expected).abs().min() > 1e-3
    assert torch.equal(again, trained)


@pytest.mark.usefixtures("attention")
def test_many_completions_of_one_prompt() -> None:
    """Completions of one token ask nothing in the last layer; long siblings have calls of their tiny."""
    tiny = family("llava")
    short_pairs = [
        tiny.pair("a1", 1, chosen=(20,), rejected=(21,)),
        tiny.pair("b1", chosen=(22, 23), rejected=(24,)),
    ]
    completions = []
    for number in range(8):
        tokens = (7 * number + torch.arange(12)) % 30 + 20
        completions.append(tuple(tokens.tolist()))
    chosen, *others = completions
    siblings = [tiny.pair("a1", 1, chosen=chosen, rejected=other) for other in others]
    for pairs in (short_pairs, siblings):
        batch = tree_batch(pairs)
        with torch.no_grad():
            expected = tree_logps(tree_model(tiny), batch).summed
            actual = tree_logps(exchanged(tiny), batch).summed
        torch.testing.assert_close(actual, expected, **NARROW)


@EACH_FAMILY
def test_rows_stay_as_they_are(name: str) -> None:
    tiny = family(name)
    pairs = [pair for pair in pairs_of(tiny) if len(pair.image_key) == 1]
    batch = Rows().collate(pairs).to("cpu", torch.float64)
    arguments = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        **batch.media,
    }
    with torch.no_grad():
        actual = exchanged(tiny)(**arguments).logits
        expected = tiny.model(**arguments).logits
    torch.testing.assert_close(actual, expected, **NARROW)


def test_what_is_not_known_is_refused() -> None:
    model = copy.deepcopy(family("qwen3_vl").model)
    vision_config = model.config.vision_config
    decoder = language_model(model)
    assert not is_installed(decoder)
    decoder.layers = decoder.layers[:2]
    assert "behind the last layer" in (why_not(decoder, vision_config) or "")
    decoder.layers[0].mlp = nn.Identity()
    assert "no proof" in (why_not(decoder, vision_config) or "")


@pytest.mark.parametrize("tuning", [None, LORA], ids=["full", "lora"])
def test_a_run_learns_the_same(store: ImageStore, tuning: dict | None) -> None:
    weights = []
    for switch in (True, False):
        trainer = Learner(run_config("torch", tuning, fast={"fused_layers": switch}))
        assert trainer.start()["fallbacks"] == {}
        for step in range(3):
            trainer.step(step, make_pairs(store, 6, 6 * step))
        weights.append(trainer.publish(1)[1])
    assert_same_weights(weights[0], weights[1])

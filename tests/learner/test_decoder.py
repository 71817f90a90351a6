"""Exchanged decoder layers equal transformers' own, in float64 and gradients included, for every proven family."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from common.config import Lora
from common.images import ImageStore
from common.model_parts import language_model
from learner.decoder import is_installed, why_not
from learner.learner import Learner
from learner.policy import Policy, add_lora
from learner.tree import tree_batch
from learner.tree_logps import prepare, tree_logps
from learner.vision import VisionShare
from tests.learner.families import Family, family
from tests.learner.helpers import LORA, assert_same_weights, make_pairs, run_config
from tests.learner.test_tree import EACH, Rows, assert_same, gradients, pairs_of, plain

NARROW = {"atol": 2e-5, "rtol": 1e-6}
"""Summed log-probs: transformers' norms round to float32 in any model."""


def exchanged(own: Family) -> Any:
    model = copy.deepcopy(own.model)
    assert why_not(language_model(model), model.config.vision_config) is None
    prepare(model, fused_layers=True)
    return model


@pytest.fixture
def wide_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain formula in the model's own dtype in place of transformers' norms: then nothing but order differs."""

    def norm(self: Any, hidden: Tensor) -> Tensor:
        return (
            self.weight
            * hidden
            / (hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).sqrt()
        )

    for name in ("llava", "qwen2_5_vl", "qwen3_vl"):
        monkeypatch.setattr(
            type(language_model(family(name).model).norm), "forward", norm
        )


@EACH
@pytest.mark.usefixtures("wide_norms", "attention")
def test_equal_to_the_plain_forward_with_gradients(name: str) -> None:
    own = family(name)
    pairs = pairs_of(own)
    expected = plain(own.model, pairs)
    model = exchanged(own)
    logps = tree_logps(model, tree_batch(pairs))
    torch.testing.assert_close(logps.summed, expected, atol=1e-9, rtol=1e-9)
    found, wanted = gradients(model, logps.summed), gradients(own.model, expected)
    own.model.zero_grad()
    assert_same(found, wanted)
    for key, value in wanted.items():
        if "language_model.layers" in key:
            assert (found[key] - value).norm() <= 1e-10 * value.norm() + 1e-12, key


@EACH
def test_equal_to_transformers_up_to_its_float32_norms(name: str) -> None:
    own = family(name)
    pairs = pairs_of(own)
    with torch.no_grad():
        found = tree_logps(exchanged(own), tree_batch(pairs)).summed
        torch.testing.assert_close(found, plain(own.model, pairs), **NARROW)


@EACH
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    own = family(name)
    model, batch = exchanged(own).train(), tree_batch(pairs_of(own))
    expected = tree_logps(model, batch).summed
    wanted = gradients(model, expected)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = tree_logps(model, batch).summed
    assert torch.equal(found, expected)
    for key, value in gradients(model, found).items():
        torch.testing.assert_close(value, wanted[key], atol=1e-12, rtol=1e-12)


@EACH
@pytest.mark.usefixtures("wide_norms")
def test_lora(name: str) -> None:
    own = family(name)
    targets = (
        r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    )
    plain_model = (
        get_peft_model(
            copy.deepcopy(own.model), LoraConfig(r=2, target_modules=targets)
        )
        .double()
        .eval()
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in plain_model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.3)
    model = copy.deepcopy(plain_model)
    prepare(model.get_base_model(), fused_layers=True)
    pairs = pairs_of(own)[:3]
    expected = plain(plain_model.get_base_model(), pairs)
    found = tree_logps(model.get_base_model(), tree_batch(pairs)).summed
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    assert_same(gradients(model, found), gradients(plain_model, expected))


@EACH
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
    name: str, sides: tuple[Any, ...], share: str
) -> None:
    """With adapters that change every log-prob, and with what policy and reference share of the vision side."""
    own = family(name)
    policy = Policy(
        add_lora(copy.deepcopy(own.model), Lora(r=2, alpha=4, sides=sides))
    ).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in policy.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.3)
    prepare(policy.model, fused_layers=True)
    policy.vision = VisionShare(policy.model, 1 << 30)
    assert policy.vision.share == share
    pairs = pairs_of(own)
    batch = tree_batch(pairs)
    with torch.no_grad():
        trained, expected = policy(batch).summed, plain(own.model, pairs)
        torch.testing.assert_close(
            policy(batch, adapters=False).summed, expected, atol=1e-9, rtol=1e-9
        )
        assert (trained - expected).abs().min() > 1e-3
        torch.testing.assert_close(policy(batch).summed, trained, atol=0, rtol=0)


@pytest.mark.usefixtures("attention")
def test_many_completions_of_one_prompt() -> None:
    """Completions of one token ask nothing in the last layer; long siblings have calls of their own."""
    own = family("llava")
    long = [
        tuple(20 + (7 * number + place) % 30 for place in range(12))
        for number in range(8)
    ]
    for pairs in (
        [
            own.pair("a1", 1, chosen=(20,), rejected=(21,)),
            own.pair("b1", chosen=(22, 23), rejected=(24,)),
        ],
        [own.pair("a1", 1, chosen=long[0], rejected=other) for other in long[1:]],
    ):
        batch = tree_batch(pairs)
        model = copy.deepcopy(own.model)
        prepare(model)
        with torch.no_grad():
            expected = tree_logps(model, batch).summed
            torch.testing.assert_close(
                tree_logps(exchanged(own), batch).summed, expected, **NARROW
            )


@EACH
def test_rows_are_as_ever(name: str) -> None:
    own = family(name)
    pairs = [pair for pair in pairs_of(own) if len(pair.image_key) == 1]
    batch = Rows().collate(pairs).to("cpu", torch.float64)
    arguments = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        **batch.media,
    }
    with torch.no_grad():
        found, expected = (
            exchanged(own)(**arguments).logits,
            own.model(**arguments).logits,
        )
    torch.testing.assert_close(found, expected, **NARROW)


def test_what_is_not_known_is_refused() -> None:
    model = copy.deepcopy(family("qwen3_vl").model)
    assert not is_installed(language_model(model))
    vision = model.config.vision_config
    language_model(model).layers = language_model(model).layers[:2]
    assert "behind the last layer" in (why_not(language_model(model), vision) or "")
    language_model(model).layers[0].mlp = nn.Identity()
    assert "no proof" in (why_not(language_model(model), vision) or "")


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

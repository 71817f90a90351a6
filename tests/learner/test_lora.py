"""Which layers of each family carry adapters, and what is known of adapters without merging them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError

from common.config import Lora, RunConfig
from learner.policy import (
    adapter_norm,
    adapter_weights,
    is_adapter,
    lora_targets,
    merge_lora,
)
from tests.learner.families import FAMILIES, family

DECODER = {
    f"model.language_model.layers.{layer}.{name}"
    for layer in range(3)
    for name in (
        *(f"self_attn.{p}_proj" for p in "qkvo"),
        *(f"mlp.{p}_proj" for p in ("gate", "up", "down")),
    )
}
CLIP = {
    f"model.vision_tower.encoder.layers.{layer}.{name}"
    for layer in range(3)
    for name in (
        *(f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")),
        "mlp.fc1",
        "mlp.fc2",
    )
}
LINEAR = {f"model.multi_modal_projector.linear_{number}" for number in (1, 2)}
QWEN_BLOCK = ("attn.qkv", "attn.proj")
EXPECTED = {
    "llava": {"language": DECODER, "projector": LINEAR, "vision": CLIP},
    "llava_next": {"language": DECODER, "projector": LINEAR, "vision": CLIP},
    "qwen2_5_vl": {
        "language": DECODER,
        "projector": {"model.visual.merger.mlp.0", "model.visual.merger.mlp.2"},
        "vision": {
            f"model.visual.blocks.{layer}.{name}"
            for layer in range(3)
            for name in (*QWEN_BLOCK, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        },
    },
    "qwen3_vl": {
        "language": DECODER,
        "projector": {
            f"model.visual.{merger}.linear_fc{number}"
            for merger in (
                "merger",
                "deepstack_merger_list.0",
                "deepstack_merger_list.1",
            )
            for number in (1, 2)
        },
        "vision": {
            f"model.visual.blocks.{layer}.{name}"
            for layer in range(3)
            for name in (*QWEN_BLOCK, "mlp.linear_fc1", "mlp.linear_fc2")
        },
    },
}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_side_by_name(name: str) -> None:
    model = family(name).model
    for side, names in EXPECTED[name].items():
        assert set(lora_targets(model, Lora(sides=(side,)))) == names  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_puts_adapters_there_and_nowhere_else(name: str) -> None:
    """peft matches endings of names: full names must not catch a layer of another side."""
    tuning = Lora(r=2, alpha=4, sides=("language", "projector"))
    model = copy.deepcopy(family(name).model)
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=lora_targets(model, tuning), bias="none"
    )
    adapted = get_peft_model(model, config)
    carriers = {
        n.split(".lora_")[0].removeprefix("base_model.model.")
        for n, _ in adapted.named_parameters()
        if is_adapter(n)
    }
    assert carriers == EXPECTED[name]["language"] | EXPECTED[name]["projector"]
    assert all(is_adapter(n) == p.requires_grad for n, p in adapted.named_parameters())


def test_the_norm_of_an_adapter_needs_no_product() -> None:
    """Against the norm of the merged change, two layers; scale alpha / r = 3."""
    torch.manual_seed(0)
    tuning = Lora(r=2, alpha=6)
    weights = {}
    for layer, (out, inner) in {"one": (5, 7), "two": (4, 3)}.items():
        weights[f"base_model.model.{layer}.base_layer.weight"] = torch.zeros(out, inner)
        weights[f"base_model.model.{layer}.lora_A.default.weight"] = torch.randn(
            2, inner
        )
        weights[f"base_model.model.{layer}.lora_B.default.weight"] = torch.randn(out, 2)
    merged, _ = merge_lora(weights, tuning)
    expected = math.sqrt(
        sum(float(value.double().square().sum()) for value in merged.values())
    )
    assert adapter_norm(weights, tuning) == pytest.approx(expected, rel=1e-6)
    assert set(adapter_weights(weights)) == {
        f"base_model.model.{layer}.lora_{side}.weight"
        for layer in ("one", "two")
        for side in "AB"
    }


@pytest.mark.parametrize(
    ("tuning", "words"),
    [
        (
            {"push": "adapter", "sides": ["language", "vision"]},
            "push = adapter needs sides = language",
        ),
        ({"push": "adapter", "quantize": "nf4"}, "set push = merged"),
        ({"quantize": "int3"}, "'none' or 'nf4'"),
    ],
)
def test_what_cannot_be_combined(tuning: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Lora.model_validate({"kind": "lora", **tuning})


def test_four_bits_are_not_split() -> None:
    with pytest.raises(ValidationError, match="cannot split 4-bit weights"):
        RunConfig.model_validate(
            {
                "model": {"tuning": {"kind": "lora", "quantize": "nf4"}},
                "learner": {"zero_stage": 3},
                "mixture": {"online_fraction": 1},
            }
        )

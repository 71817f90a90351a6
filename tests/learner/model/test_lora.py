"""Which layers of each family carry adapters, and what is known of adapters without merging them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from pydantic import ValidationError

from common.config import Lora, RunConfig
from common.model_parts import lora_targets
from learner.model.lora import adapter_norm, adapter_weights, is_adapter, merge_lora
from learner.model.peft_api import add_lora
from tests.learner.families import FAMILIES, family

NUM_LAYERS = 3


def in_layers(prefix: str, *leaves: str) -> set[str]:
    """These names in every layer."""
    names = set()
    for layer in range(NUM_LAYERS):
        names |= {f"{prefix}.{layer}.{leaf}" for leaf in leaves}
    return names


GATED_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
DECODER = in_layers(
    "model.language_model.layers",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    *GATED_MLP,
)
LLAVA = {
    "language": DECODER,
    "projector": {
        "model.multi_modal_projector.linear_1",
        "model.multi_modal_projector.linear_2",
    },
    "vision": in_layers(
        "model.vision_tower.encoder.layers",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        "mlp.fc1",
        "mlp.fc2",
    ),
}
QWEN_BLOCKS = "model.visual.blocks"
QWEN_ATTENTION = ("attn.qkv", "attn.proj")
EXPECTED = {
    "llava": LLAVA,
    "llava_next": LLAVA,
    "qwen2_5_vl": {
        "language": DECODER,
        "projector": {"model.visual.merger.mlp.0", "model.visual.merger.mlp.2"},
        "vision": in_layers(QWEN_BLOCKS, *QWEN_ATTENTION, *GATED_MLP),
    },
    "qwen3_vl": {
        "language": DECODER,
        "projector": {
            "model.visual.merger.linear_fc1",
            "model.visual.merger.linear_fc2",
            "model.visual.deepstack_merger_list.0.linear_fc1",
            "model.visual.deepstack_merger_list.0.linear_fc2",
            "model.visual.deepstack_merger_list.1.linear_fc1",
            "model.visual.deepstack_merger_list.1.linear_fc2",
        },
        "vision": in_layers(
            QWEN_BLOCKS,
            *QWEN_ATTENTION,
            "mlp.linear_fc1",
            "mlp.linear_fc2",
        ),
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
    adapted = add_lora(model, tuning)
    carriers = set()
    for peft_name, parameter in adapted.named_parameters():
        assert is_adapter(peft_name) == parameter.requires_grad
        if is_adapter(peft_name):
            layer = peft_name.split(".lora_")[0]
            carriers.add(layer.removeprefix("base_model.model."))
    assert carriers == EXPECTED[name]["language"] | EXPECTED[name]["projector"]


def test_the_norm_of_an_adapter_needs_no_product() -> None:
    """Against the norm of the merged change, two layers; scale alpha / r = 3."""
    torch.manual_seed(0)
    tuning = Lora(r=2, alpha=6)
    weights = {}
    for layer, outputs, inputs in (("one", 5, 7), ("two", 4, 3)):
        prefix = f"base_model.model.{layer}"
        weights[f"{prefix}.base_layer.weight"] = torch.zeros(outputs, inputs)
        weights[f"{prefix}.lora_A.default.weight"] = torch.randn(2, inputs)
        weights[f"{prefix}.lora_B.default.weight"] = torch.randn(outputs, 2)
    merged, _ = merge_lora(weights, tuning)
    changes = torch.cat([change.double().flatten() for change in merged.values()])
    assert adapter_norm(weights, tuning) == pytest.approx(
        float(changes.norm()), rel=1e-6
    )
    assert set(adapter_weights(weights)) == {
        "base_model.model.one.lora_A.weight",
        "base_model.model.one.lora_B.weight",
        "base_model.model.two.lora_A.weight",
        "base_model.model.two.lora_B.weight",
    }


def test_the_norm_of_an_adapter_is_zero_only_untrained() -> None:
    """Ones of rank 1 and values of 1e-30: every one of 3 x 2 changes is 1e-30. Its square is zero in float32."""
    tuning = Lora(r=1, alpha=1)
    a, b = "layer.lora_A.default.weight", "layer.lora_B.default.weight"
    weights = {a: torch.ones(1, 2), b: torch.full((3, 1), 1e-30)}
    assert adapter_norm(weights, tuning) == pytest.approx(6**0.5 * 1e-30)
    assert adapter_norm({**weights, b: torch.zeros(3, 1)}, tuning) == 0
    broken = {**weights, b: torch.full((3, 1), math.nan)}
    assert math.isnan(adapter_norm(broken, tuning))


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

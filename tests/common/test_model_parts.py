"""Names and structure give one answer to which part of a model something is in, for every family at hand."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import nn

from common.checkpoint.layout import layout_of_model
from common.model_parts import (
    has_projector_inside,
    is_vision_side,
    is_vision_tower,
    language_model,
    part_of,
    vision_side_parameters,
    vision_tower,
    vision_tower_parameters,
)
from tests.learner.families import FAMILIES, TEXT, TOWER, family

GOLDEN = {
    "model.vision_tower.encoder.layers.0.mlp.fc1.weight": "vision",
    "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": "vision",
    "model.visual.blocks.0.attn.qkv.weight": "vision",
    "visual.blocks.0": "vision",
    "net.base_model.model.model.visual.blocks.0.attn.qkv.base_layer.weight": "vision",
    "model.multi_modal_projector.linear_1.weight": "projector",
    "multi_modal_projector.linear_1.weight": "projector",
    "model.visual.merger.mlp.0.weight": "projector",
    "visual.deepstack_merger_list.0.norm.weight": "projector",
    "model.connector.modality_projection.proj.weight": "projector",
    "model.image_newline": "projector",
    "model.language_model.layers.0.self_attn.q_proj.weight": "language",
    "lm_head.weight": "language",
    "language_model.lm_head.weight": "language",
}


@pytest.mark.parametrize(("name", "part"), GOLDEN.items())
def test_parts_by_name(name: str, part: str) -> None:
    assert part_of(name) == part
    assert is_vision_tower(name) == (part == "vision")
    assert is_vision_side(name) == (part != "language")


def check_one_answer(model: nn.Module) -> None:
    """Every parameter's name, also that of its tensor on the hub, says what the model's structure says."""
    tower = {id(parameter) for parameter in vision_tower_parameters(model)}
    vision_side = {id(parameter) for parameter in vision_side_parameters(model)}
    assert tower
    assert tower < vision_side
    tensor_of = {}
    for conversion in layout_of_model(model).conversions:
        for name in conversion.parameters:
            tensor_of[name] = conversion.tensors[0]
    for name, parameter in model.named_parameters():
        for spelling in (name, tensor_of[name]):
            assert is_vision_tower(spelling) == (id(parameter) in tower), spelling
            assert is_vision_side(spelling) == (id(parameter) in vision_side), spelling


@pytest.mark.parametrize("name", FAMILIES)
def test_names_and_structure_agree(name: str) -> None:
    model = family(name).model
    check_one_answer(model)
    assert has_projector_inside(model) == name.startswith("qwen")
    assert language_model(model) is model.model.language_model


def siglip() -> hf.SiglipVisionConfig:
    return hf.SiglipVisionConfig(**TOWER, image_size=32, patch_size=8)


def gemma3() -> nn.Module:
    text = hf.Gemma3TextConfig(vocab_size=64, head_dim=8, **TEXT)
    config = hf.Gemma3Config(
        text_config=text,
        vision_config=siglip(),
        mm_tokens_per_image=4,
        image_token_index=60,
    )
    return hf.Gemma3ForConditionalGeneration(config)


def pixtral() -> nn.Module:
    vision = hf.PixtralVisionConfig(**TOWER, image_size=32, patch_size=8)
    text = hf.MistralConfig(vocab_size=64, head_dim=8, **TEXT)
    config = hf.LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=60
    )
    return hf.LlavaForConditionalGeneration(config)


def internvl() -> nn.Module:
    vision = hf.InternVLVisionConfig(**TOWER, image_size=[32, 32], patch_size=[8, 8])
    text = hf.Qwen2Config(vocab_size=64, **TEXT)
    config = hf.InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=60
    )
    return hf.InternVLForConditionalGeneration(config)


@pytest.mark.parametrize("build", [gemma3, pixtral, internvl])
def test_families_to_come(build: object) -> None:
    with torch.device("meta"):
        model = build()  # type: ignore[operator]
    check_one_answer(model)
    assert not has_projector_inside(model)


def test_a_model_without_a_tower_is_refused() -> None:
    with torch.device("meta"):
        model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=64, **TEXT))
    with pytest.raises(ValueError, match="expected a vision-language model"):
        vision_tower(model)

"""Names and values of a layout, against the files of published checkpoints and of `save_pretrained`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from common.checkpoint.files import tensors
from common.checkpoint.layout import Layout, layout_of, layout_of_model, make_layout
from common.errors import UserError
from tests.families.case import Case
from tests.families.cases import parameters
from tests.families.qwen import QWEN3_5, QWEN3_VL_MOE
from tests.learner.families import TEXT
from tests.tiny_models import TinyLlava, tiny_llava

Weights = dict[str, Tensor]
RENAMED = {"llava", "llava_next", "gemma3"}
"""Families whose towers `save_pretrained` names otherwise than the hub does."""


def files_of(path: Path) -> Weights:
    return dict(tensors(path, lambda name: True))


def model_of(path: Path) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForImageTextToText.from_pretrained(path)
    return model


def readable_files(path: Path, layout: Layout) -> Weights:
    """The files' tensors as engines read them."""
    readable = {}
    for name, tensor in tensors(path, lambda name: True):
        readable_name, readable_tensor = layout.readable(name, tensor)
        readable[readable_name] = readable_tensor
    return readable


def assert_equal(first: Weights, second: Weights) -> None:
    """Names and bits."""
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("case", parameters())
def test_a_published_checkpoint_comes_back_bit_by_bit(case: Case) -> None:
    """From what transformers makes of its files; the files were named by patterns of the tests."""
    path = case.directory()
    layout = layout_of(path)
    model = model_of(path)
    held = dict(layout.tensors(model.state_dict()))
    files = files_of(path)
    for name, shape in layout.carried.items():
        assert tuple(files.pop(name).shape) == shape
    assert_equal(held, files)
    assert layout.shapes == {name: tuple(value.shape) for name, value in held.items()}
    assert layout.is_readable
    assert bool(layout.carried) == (case is QWEN3_5)


@pytest.mark.parametrize("case", parameters())
def test_what_save_pretrained_writes_is_read_as_the_hubs(
    case: Case, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, _ = case.make()
    model.save_pretrained(tmp_path)
    layout = layout_of(tmp_path)
    published = case.published_weights(model)
    for name in layout_of(case.directory()).carried:
        published.pop(name)
    assert_equal(readable_files(tmp_path, layout), published)
    assert bool(layout.renamed) == (case.name in RENAMED)
    assert bool(layout.transposed) == (case is QWEN3_VL_MOE)
    # A push and an export carry the same.
    assert_equal(dict(layout.tensors(model.state_dict())), published)
    assert layout_of_model(model).shapes == layout.shapes


def qwen3_5_moe() -> torch.nn.Module:
    """Two layers with four experts and one that all tokens go through."""
    text = {
        **TEXT,
        "vocab_size": 64,
        "num_hidden_layers": 2,
        "layer_types": ["full_attention", "full_attention"],
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
    }
    config = hf.Qwen3_5MoeConfig(vision_config=vision, text_config=text)
    return hf.Qwen3_5MoeForConditionalGeneration(config)


def test_packed_experts_become_a_tensor_each(tmp_path: Path) -> None:
    model = qwen3_5_moe()
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    files = files_of(tmp_path)
    layout = layout_of(tmp_path)
    state = model.state_dict()
    assert_equal(dict(layout.tensors(state)), files)
    layer = "model.language_model.layers.1.mlp.experts."
    gate, up = state[f"{layer}gate_up_proj"][3].chunk(2)
    assert torch.equal(files[f"{layer}3.gate_proj.weight"], gate)
    assert torch.equal(files[f"{layer}3.up_proj.weight"], up)


def test_experts_that_are_packed_on_disk_stay_packed(tmp_path: Path) -> None:
    model = qwen3_5_moe()
    model.config.save_pretrained(tmp_path)  # type: ignore[operator, union-attr]
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    layout = layout_of(tmp_path)
    assert layout.shapes == {name: tuple(value.shape) for name, value in state.items()}
    assert_equal(dict(layout.tensors(state)), state)


def test_a_tied_head_is_pushed_and_not_saved() -> None:
    layout = layout_of(tiny_llava(TinyLlava(tied=True)))
    state = model_of(tiny_llava(TinyLlava(tied=True))).state_dict()
    embedding = state["model.language_model.embed_tokens.weight"]
    pushed = dict(layout.pushed(state))
    assert torch.equal(pushed.pop("lm_head.weight"), embedding)
    assert_equal(pushed, dict(layout.tensors(state)))
    untied = layout_of(tiny_llava())
    assert not untied.tied
    assert "language_model.lm_head.weight" in untied.shapes


def test_a_tied_head_that_is_on_disk_too_is_saved_again() -> None:
    layout = layout_of(tiny_llava(TinyLlava(tied=True)))
    name = "language_model.lm_head.weight"
    shape = layout.shapes["language_model.model.embed_tokens.weight"]
    model = model_of(tiny_llava(TinyLlava(tied=True)))
    both = make_layout(model, {**layout.shapes, name: shape}, "here")
    assert not both.tied
    held = dict(both.tensors(model.state_dict()))
    assert torch.equal(held[name], held["language_model.model.embed_tokens.weight"])


def changed_copy(folder: Path, change: Weights, without: str | None = None) -> Path:
    shutil.copytree(tiny_llava(), folder)
    weights = load_file(folder / "model.safetensors") | change
    weights.pop(without or "", None)
    save_file(weights, folder / "model.safetensors")
    return folder


def test_a_checkpoint_without_a_weight_is_refused(tmp_path: Path) -> None:
    name = "language_model.model.norm.weight"
    path = changed_copy(tmp_path / "model", {}, without=name)
    with pytest.raises(UserError, match=r"without 1 of them \(model.language_model.n"):
        layout_of(path)


def test_a_weight_of_another_shape_is_refused(tmp_path: Path) -> None:
    name = "language_model.model.norm.weight"
    path = changed_copy(tmp_path / "model", {name: torch.ones(5)})
    with pytest.raises(UserError, match=rf"expected {name} of shape \(64,\), .*\(5,\)"):
        layout_of(path)


def test_a_second_copy_in_mistrals_format_is_not_read(tmp_path: Path) -> None:
    path = changed_copy(tmp_path / "model", {})
    save_file({"tok_embeddings": torch.ones(2)}, path / "consolidated.safetensors")
    assert layout_of(path) == layout_of(tiny_llava())


def test_unknown_tensors_are_carried(tmp_path: Path) -> None:
    path = changed_copy(tmp_path / "model", {"extra.layer.weight": torch.ones(2, 3)})
    assert layout_of(path).carried == {"extra.layer.weight": (2, 3)}

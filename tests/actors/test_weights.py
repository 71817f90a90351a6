"""Names, bits and checksums of weights in flight."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from actors.weights.loader import load_arguments
from actors.weights.push_check import whole_weights
from actors.weights.sender import shared_file
from common.checkpoint.layout import layout_of
from common.errors import UserError
from common.model_parts import is_vision_side, is_vision_tower
from common.records import WeightManifest
from common.weights import (
    Array,
    checksum,
    from_arrays,
    to_arrays,
)
from tests.tiny_models import TinyLlava, tiny_llava


def test_vision_side_and_tower() -> None:
    projector = "multi_modal_projector.linear_1.weight"
    assert is_vision_side(projector)
    assert not is_vision_tower(projector)
    assert is_vision_tower("vision_tower.vision_model.x")
    assert is_vision_tower("visual.blocks.0")
    assert not is_vision_tower("visual.merger.x")
    assert not is_vision_side("language_model.lm_head.weight")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_survive_the_journey(dtype: torch.dtype) -> None:
    state = {
        "model.language_model.norm.weight": torch.randn(5).to(dtype),
        "lm_head.weight": torch.randn(2, 3).to(dtype),
    }
    arrived = from_arrays(to_arrays(state.items()))
    # No name is lost or doubled.
    assert len(arrived) == len(state)
    for name, sent in state.items():
        tensor = arrived[name]
        assert tensor.dtype == dtype
        assert torch.equal(tensor, sent)


def test_the_checksum_sees_bytes_names_shapes_and_dtypes_but_no_order() -> None:
    first: dict[str, Array] = {
        "a": np.arange(4, dtype=np.float32),
        "b": np.zeros(2, np.float32),
    }
    reordered = dict(reversed(first.items()))
    assert checksum(first) == checksum(reordered)
    others: list[dict[str, Array]] = [
        # Bytes, names, shapes, dtypes.
        first | {"a": first["a"] + 1},
        {"a": first["a"], "c": first["b"]},
        first | {"a": first["a"].reshape(2, 2)},
        first | {"a": first["a"].view(np.int32)},
    ]
    checksums = {checksum(tensors) for tensors in (first, *others)}
    assert len(checksums) == 5


def test_a_frozen_tower_may_be_left_out_a_projector_not() -> None:
    layout = layout_of(tiny_llava(TinyLlava()))
    tensors = {}
    for name, shape in layout.shapes.items():
        if not is_vision_tower(name):
            tensors[name] = np.zeros(shape, np.float32)
    manifest = WeightManifest(
        1,
        checksum(tensors),
        len(tensors),
        0,
        1.0,
    )
    frozen = whole_weights(layout, vision_frozen=True)
    frozen.check(manifest, tensors)
    with pytest.raises(UserError, match="without"):
        whole_weights(layout, vision_frozen=False).check(manifest, tensors)

    # The projector is trained even if the tower is not.
    without_projector = dict(tensors)
    for name in tensors:
        if name.startswith("multi_modal"):
            del without_projector[name]
    described = replace(manifest, checksum=checksum(without_projector))
    with pytest.raises(UserError, match="multi_modal_projector"):
        frozen.check(described, without_projector)


def test_a_push_of_what_no_learner_holds_is_named() -> None:
    layout = replace(layout_of(tiny_llava()), carried={"mtp.fc.weight": (1,)})
    arrays: dict[str, Array] = {}
    for name, shape in layout.shapes.items():
        arrays[name] = np.zeros(shape, np.float32)
    expected = whole_weights(layout, vision_frozen=False)
    expected.check(WeightManifest(1, checksum(arrays), len(arrays), 0, 1.0), arrays)
    arrays["mtp.fc.weight"] = np.zeros(1, np.float32)
    manifest = WeightManifest(1, checksum(arrays), len(arrays), 0, 1.0)
    with pytest.raises(UserError, match=r"1 that no learner holds: mtp\.fc\.weight"):
        expected.check(manifest, arrays)


def test_engines_read_checkpoints_as_the_learner_does(tmp_path: Path) -> None:
    assert load_arguments(str(tiny_llava())) == {}
    path = tmp_path / "model"
    shutil.copytree(tiny_llava(), path)
    save_file({"tok_embeddings": np.ones(2)}, path / "consolidated.safetensors")
    formats = ("config_format", "load_format", "tokenizer_mode")
    assert load_arguments(str(path)) == dict.fromkeys(formats, "hf")


def test_the_shared_file_is_private_and_gone_afterwards() -> None:
    with shared_file({"a": np.ones(3, np.float32)}) as path:
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o077 == 0
    assert not path.parent.exists()

"""Names, bits and checksums of weights in flight."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import actors.weights.sender
from actors.weights.loader import load_arguments
from actors.weights.push_check import whole_weights
from actors.weights.sender import read_weights, shared_weights
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


def test_the_checksum_is_the_same_on_every_machine() -> None:
    tensors: dict[str, Array] = {
        "a": np.arange(1000, dtype=np.float32),
        "b@bfloat16": np.arange(77, dtype=np.uint16),
    }
    expected = "b9723fd7417e19549bb21af2d4ce506289fd7b2dd3c490acbdf1359b269dad38"
    assert checksum(tensors) == expected


def test_the_checksum_sees_what_a_faulty_push_would_do() -> None:
    """Stale and torn tensors, two that changed places, rows that did, a single bit."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal((2, 256, 256)).astype(np.float32)
    q, k = values
    torn = q.copy()
    torn[128:] = k[128:]
    rows = q.copy()
    rows[[3, 200]] = rows[[200, 3]]
    bit = q.copy()
    bit.view(np.uint32)[100, 100] ^= 1
    pushes: list[dict[str, Array]] = [{"q": q, "k": k}, {"q": k, "k": q}]
    for wrong in (torn, rows, bit):
        pushes.append({"q": wrong, "k": k})
    assert len({checksum(push) for push in pushes}) == len(pushes)


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


def manifest_of(tensors: dict[str, Array]) -> WeightManifest:
    return WeightManifest(1, checksum(tensors), len(tensors), 0, 1.0)


def test_what_an_engine_reads_is_what_the_worker_got(monkeypatch: Any) -> None:
    """In several files, of which each holds some of the tensors; a change by an engine reaches no other."""
    monkeypatch.setattr(actors.weights.sender, "num_files", lambda: 3)
    state = {
        "small": torch.randn(3),
        "large": torch.randn(500, 3).to(torch.bfloat16),
        "scalar": torch.tensor(2.0),
    }
    arrays = to_arrays(state.items())
    # Strides that safetensors would ignore.
    arrays["turned"] = np.arange(6, dtype=np.float32).reshape(2, 3).T
    state["turned"] = torch.from_numpy(arrays["turned"])
    with shared_weights(manifest_of(arrays), arrays, 30) as folder:
        assert folder.stat().st_mode & 0o077 == 0
        for _ in range(2):
            tensors = dict(read_weights(folder))
            assert tensors.keys() == state.keys()
            for name, tensor in tensors.items():
                assert tensor.dtype == state[name].dtype
                assert torch.equal(tensor, state[name])
                tensor.zero_()
    assert not folder.exists()


def test_other_bytes_than_the_manifests_are_refused() -> None:
    arrays: dict[str, Array] = {"a": np.ones(1000, np.float32)}
    manifest = manifest_of(arrays)
    arrays["a"][500] = 2
    with pytest.raises(UserError, match="expected checksum"):
        shared_weights(manifest, arrays, 30).__enter__()


def test_a_push_needs_room_in_shared_memory(monkeypatch: Any) -> None:
    arrays: dict[str, Array] = {"a": np.ones(1 << 20, np.float32)}
    usage = shutil.disk_usage("/dev/shm")._replace(free=3 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"expected 4 MiB free .* got 3 MiB"):
        shared_weights(manifest_of(arrays), arrays, 30).__enter__()

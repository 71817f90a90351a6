"""Weights that come one by one: the model that transformers loads, and no more of it in memory than stays there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText

from benchmarks import learner_start
from learner.model.policy import load_model
from learner.model.streaming import Shards
from tests.families.case import Case
from tests.families.cases import parameters
from tests.tiny_models import tiny_llava


def in_many_files(source: Path, out: Path) -> Path:
    """The checkpoint cut into files of some tensors each, with an index."""
    out.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    weights = load_file(source / "model.safetensors")
    save_torch_state_dict(
        weights, out, max_shard_size=40_000, metadata={"format": "pt"}
    )
    assert len(list(out.glob("*.safetensors"))) > 4
    return out


@pytest.mark.parametrize("case", parameters())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_what_transformers_loads(
    case: Case, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Of every family, published names and packed experts among them: parameters, buffers that no file has, tied
    weights, and the config of generation.
    """
    path = in_many_files(case.directory(), tmp_path / "sharded")
    model = load_model(path, dtype)
    expected = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype)
    for actual, wanted in (
        (model.named_parameters(), expected.named_parameters()),
        (model.named_buffers(), expected.named_buffers()),
    ):
        tensors = dict(actual)
        wanted_tensors = dict(wanted)
        assert tensors.keys() == wanted_tensors.keys()
        for key, tensor in wanted_tensors.items():
            assert tensors[key].dtype == tensor.dtype
            assert torch.equal(tensors[key], tensor), key
    assert model.config.to_json_string() == expected.config.to_json_string()
    generation = expected.generation_config.to_json_string()
    assert model.generation_config.to_json_string() == generation
    assert model.name_or_path == str(path)


def test_each_parameter_is_placed_before_the_next_is_read(tmp_path: Path) -> None:
    """A place that takes the memory away at once: all are seen whole and once, and one file is open."""
    path = in_many_files(tiny_llava(), tmp_path / "sharded")
    shapes = []

    def take(parameter: nn.Parameter) -> None:
        shapes.append(tuple(parameter.shape))
        parameter.data = torch.empty(0)

    model = load_model(path, torch.float32, place=take)
    assert all(parameter.numel() == 0 for parameter in model.parameters())
    expected = [weight.shape for weight in load_model(path, torch.float32).parameters()]
    assert sorted(shapes) == sorted(tuple(shape) for shape in expected)


def test_no_file_is_mapped(tmp_path: Path) -> None:
    """Tensors are memory of this process: a file that is overwritten later changes nothing."""
    path = in_many_files(tiny_llava(), tmp_path / "sharded")
    shards = Shards(path)
    tensors = [tensor[...] for tensor in shards.tensors().values()]
    copies = [tensor.clone() for tensor in tensors]
    assert str(path) not in Path("/proc/self/maps").read_text()
    for file in path.glob("*.safetensors"):
        file.write_bytes(b"\0" * file.stat().st_size)
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.real
def test_no_rank_holds_more_than_its_share_and_a_file(tmp_path: Path) -> None:
    """124 M parameters of bfloat16 on two ranks, policy and reference split up.

    Whoever loaded one of them whole would hold half a model more than the bound: 124 MB against 49 MB of the largest
    file and 64 MiB of slack.
    """
    report = learner_start.measure("100m", 2, tmp_path, ["full, ZeRO-3"])
    (case,) = report["cases"]
    model = report["model_bytes"]
    assert case["bound"] < 1.5 * model
    for rank in case["ranks"]:
        # Both shares are there.
        assert 0.95 * model < rank["kept"]
        assert rank["peak"] <= case["bound"]

"""What DeepSpeed is told about a model, without starting it."""

from __future__ import annotations

import os

import pytest
import torch
from transformers import AutoModelForImageTextToText
from transformers.models.qwen3_vl_moe import Qwen3VLMoeConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import (
    Qwen3VLMoeTextSparseMoeBlock,
)

from common.config import Learner
from learner.engines.deepspeed_engine import (
    _optimizer,
    _set_environment,
    _zero,
    expert_blocks,
)


def test_a_mixture_of_experts_is_gathered_as_one() -> None:
    """The block with the router and the experts; a dense layer has none."""
    config = Qwen3VLMoeConfig()
    config.text_config.num_hidden_layers = 2
    config.text_config.mlp_only_layers = [1]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert expert_blocks(model) == [Qwen3VLMoeTextSparseMoeBlock]
    assert expert_blocks(torch.nn.Linear(1, 1)) == []


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_adamw_is_fused_and_only_stage_2_overlaps(stage: int) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = _optimizer([weight], Learner(), stage)
    assert optimizer.param_groups[0]["fused"]
    assert _zero(Learner(), stage)["overlap_comm"] == (stage == 2)


def test_ranks_on_gpus_take_memory_in_segments_that_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the user has set stays."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    _set_environment(Learner(num_gpus=1), 0, 1)
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
    _set_environment(Learner(num_gpus=1), 0, 1)
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "backend:native"

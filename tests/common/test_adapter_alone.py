"""What `model.tuning.push = auto` means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.config import Model, Rollout
from common.errors import UserError
from common.push.adapter import (
    against_adapter,
    check_adapter,
    has_experts,
    pushes_adapter,
)

CPU = Rollout()
GPU = Rollout(num_gpus=1)


def model_of(folder: Path, config: dict[str, Any], **tuning: Any) -> Model:
    (folder / "config.json").write_text(json.dumps(config))
    return Model.model_validate(
        {"path": str(folder), "tuning": {"kind": "lora", **tuning}}
    )


def test_lora_is_pushed_as_an_adapter_unless_told(tmp_path: Path) -> None:
    for rollout in (CPU, GPU):
        assert pushes_adapter(model_of(tmp_path, {}), rollout)
        assert not pushes_adapter(model_of(tmp_path, {}, push="merged"), rollout)
    full = Model.model_validate({"path": str(tmp_path), "tuning": {"kind": "full"}})
    assert not pushes_adapter(full, GPU)


@pytest.mark.parametrize(
    ("tuning", "reason"),
    [
        ({"sides": ["language", "vision"]}, "sides language, vision"),
        ({"quantize": "nf4"}, "a base in nf4"),
        ({"r": 1024}, "rank 1024, of which vLLM runs at most 512"),
    ],
)
def test_what_engines_cannot_run_is_merged_with_the_reason(
    tmp_path: Path, tuning: dict[str, Any], reason: str
) -> None:
    model = model_of(tmp_path, {}, **tuning)
    assert not pushes_adapter(model, GPU)
    assert reason in str(against_adapter(model, GPU))
    message = f"expected merged for .*{reason}.*, got adapter; set push = merged"
    with pytest.raises(UserError, match=message):
        check_adapter(model, GPU)


@pytest.mark.parametrize(
    "config",
    [
        {"text_config": {"num_experts": 128, "num_experts_per_tok": 8}},
        {"num_local_experts": 8},
        {"text_config": {"n_routed_experts": 64}},
    ],
)
def test_experts_take_adapters_on_gpus_alone(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    model = model_of(tmp_path, config)
    assert pushes_adapter(model, GPU)
    assert not pushes_adapter(model, CPU)
    assert "mixture of experts on a CPU" in str(against_adapter(model, CPU))


@pytest.mark.parametrize("config", [{}, {"num_experts": 0}, {"num_experts": 1}, []])
def test_a_model_without_experts(tmp_path: Path, config: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not has_experts(str(tmp_path))
    assert not has_experts(str(tmp_path / "none"))

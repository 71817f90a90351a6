"""Models that run in the reward workers count: 100 parameters of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cluster.planner.gpu_kinds import DRIVER_BYTES, GPU_KINDS
from cluster.planner.judging import reward_seats
from cluster.planner.seats import Seat
from common.config import RunConfig


@pytest.fixture
def folder(tmp_path: Path) -> str:
    save_file({"weight": torch.zeros(10, 10)}, tmp_path / "model.safetensors")
    return str(tmp_path)


def seats(judge: dict[str, Any], **reward: Any) -> list[Seat]:
    config = RunConfig.model_validate(
        {
            "reward": {"judge": judge, **reward},
            "mixture": {"online_fraction": 1.0},
        }
    )
    return list(reward_seats(config, GPU_KINDS["h100"]))


def test_rules_need_no_model() -> None:
    assert seats({"kind": "rules"}) == []


@pytest.mark.parametrize("kind", ["clip", "reward_model"])
def test_a_judge_is_float32_on_a_cpu_and_as_it_is_saved_on_a_gpu(
    kind: str, folder: str
) -> None:
    judge = {"kind": kind, "path": folder}
    (on_cpu,) = seats(judge, num_workers=2)
    assert on_cpu.count == 2
    assert on_cpu.parts == {"weights": 400}
    (on_gpu,) = seats(judge, num_gpus=0.5)
    assert on_gpu.parts == {"weights": 200, "driver": DRIVER_BYTES}
    assert on_gpu.limit == GPU_KINDS["h100"].memory / 2


def test_an_ensemble_holds_all_of_its_models(folder: str, tmp_path: Path) -> None:
    """A similarity of 400 bytes, and an eye in torch of 200."""
    other = tmp_path / "eye"
    other.mkdir()
    save_file({"weight": torch.zeros(10, 10)}, other / "model.safetensors")
    eye = {"kind": "torch", "path": str(other), "dtype": "bfloat16"}
    members = [
        {"judge": {"kind": "clip", "path": folder}},
        {"judge": {"kind": "claims", "eye": eye}},
    ]
    (seat,) = seats({"kind": "ensemble", "members": members})
    assert seat.parts == {"weights": 600}


def test_a_model_that_is_elsewhere_is_not_counted(tmp_path: Path) -> None:
    assert seats({"kind": "clip", "path": str(tmp_path / "none")}) == []

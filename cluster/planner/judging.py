"""Bytes of the models that run in the reward workers themselves: similarity, reward models, eyes in torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

from cluster.planner.activations import FLOAT32, ITEM_BYTES
from cluster.planner.gpu_kinds import DRIVER_BYTES, PROCESS_BYTES, GpuKind
from cluster.planner.seats import Seat, gpu_limit
from common.checkpoint.files import tensor_shapes
from common.config import RunConfig
from common.config.eyes import TorchEye, eyes_of
from common.config.judges import ClipJudge, EnsembleJudge, JudgeConfig, RewardModelJudge


def reward_seats(
    config: RunConfig,
    kind: GpuKind | None,
) -> Iterator[Seat]:
    """The reward workers; none where no model runs in them. A batch of theirs is small beside its model."""
    reward = config.reward
    weights = 0.0
    for path, item in _models(reward.judge, reward.num_gpus > 0).items():
        weights += _numel(path) * item
    if not weights:
        return
    parts = {"weights": weights}
    if reward.num_gpus:
        parts["driver"] = DRIVER_BYTES
    yield Seat(
        "reward",
        reward.num_workers,
        reward.num_gpus,
        parts,
        {"process": PROCESS_BYTES},
        gpu_limit(reward.num_gpus, kind),
    )


def _models(judge: JudgeConfig, on_gpu: bool) -> Mapping[str, int]:
    """Folders of models -> bytes a parameter. Judges are float32 on a CPU (`reward/model_judges/loading.py`)."""
    models: dict[str, int] = {}
    for eye in eyes_of(judge):
        if isinstance(eye, TorchEye):
            models[str(eye.path)] = ITEM_BYTES[eye.dtype]
    for member in _members(judge):
        if isinstance(member, ClipJudge | RewardModelJudge):
            # On a GPU the checkpoint's type, which is 16 bits wide as a rule.
            models[str(member.path)] = ITEM_BYTES["bfloat16"] if on_gpu else FLOAT32
    return models


def _members(judge: JudgeConfig) -> Iterator[object]:
    if isinstance(judge, EnsembleJudge):
        for member in judge.members:
            yield member.judge
    else:
        yield judge


def _numel(path: str) -> int:
    """Parameters of a model on this disk; none of one elsewhere, whose judge will say so itself."""
    if not any(Path(path).glob("*.safetensors")):
        return 0
    return sum(prod(shape) for shape in tensor_shapes(path).values())

"""Which parameters train, and under which ZeRO stage."""

from __future__ import annotations

from cluster.planner.shape import ModelShape, numel_of
from common.config import Lora, RunConfig
from common.model_parts import Part

FLOW: tuple[Part, ...] = ("vision", "projector", "language")
"""The parts of a model, as a picture goes through them."""


def stage_of(config: RunConfig) -> int:
    """The ZeRO stage as the engine runs it."""
    learner = config.learner
    if learner.engine == "torch":
        return 0
    is_bfloat16 = config.model.dtype == "bfloat16"
    return max(learner.zero_stage, int(is_bfloat16))


def trained_parts(config: RunConfig) -> tuple[Part, ...]:
    """The parts of the model in which something trains."""
    model = config.model
    if isinstance(model.tuning, Lora):
        return model.tuning.sides
    return ("projector", "language") if model.freeze_vision else FLOW


def trained_numel(
    config: RunConfig,
    shape: ModelShape,
) -> int:
    """Parameters that train, over all ranks."""
    tuning = config.model.tuning
    if isinstance(tuning, Lora):
        return adapter_numel(tuning, shape)
    return numel_of(shape.of_part(*trained_parts(config)))


def largest_trained(
    config: RunConfig,
    shape: ModelShape,
) -> int:
    """Elements of the largest parameter that trains."""
    tuning = config.model.tuning
    if isinstance(tuning, Lora):
        return max(adapter_numels(tuning, shape))
    weights = shape.of_part(*trained_parts(config))
    return max(weight.numel for weight in weights)


def adapter_numel(
    tuning: Lora,
    shape: ModelShape,
) -> int:
    """Parameters of all adapters: r (rows + columns) a matrix."""
    return sum(adapter_numels(tuning, shape))


def adapter_numels(
    tuning: Lora,
    shape: ModelShape,
) -> list[int]:
    """Parameters of every adapter's two matrices."""
    numels: list[int] = []
    for weight in shape.lora_targets(tuning):
        numels += [tuning.r * weight.columns, tuning.r * weight.rows]
    return numels

"""Which setting gives how much memory: the same plan again, with one setting changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cluster.planner.gpu_kinds import GpuKind
from cluster.planner.plan import Plan, plan_run
from cluster.planner.shape import ModelShape
from common.config import Lora, RunConfig

LEAST_SAVED = 64 << 20
"""A setting that gives less is not worth a line."""


@dataclass(frozen=True, slots=True)
class Knob:
    """A setting that saves memory.

    Attributes:
        role: whose.
        change: as one types it.
        saved: bytes of every device.
    """

    role: str
    change: str
    saved: float


def knobs_of(
    config: RunConfig,
    plan: Plan,
    shapes: Mapping[str, ModelShape] | None = None,
) -> list[Knob]:
    """Settings that save memory, the best first."""
    knobs = []
    for role, changes in _changes(config):
        changed = _changed(config, changes)
        if changed is None:
            continue
        saved = _bytes_of(plan, role)
        saved -= _bytes_of(_planned(changed, plan.kind, shapes), role)
        if saved >= LEAST_SAVED:
            words = [f"--{key} {_typed(value)}" for key, value in changes.items()]
            knobs.append(Knob(role, " ".join(words), saved))
    return sorted(knobs, key=lambda knob: -knob.saved)


def _planned(
    config: RunConfig,
    kind: GpuKind | None,
    shapes: Mapping[str, ModelShape] | None,
) -> Plan:
    return plan_run(config, kind, shapes)


def _bytes_of(
    plan: Plan,
    role: str,
) -> float:
    (seat,) = [seat for seat in plan.seats if seat.role == role]
    if role == "learner":
        return seat.device_bytes
    # What its cache takes is what is left.
    return seat.device_bytes - seat.parts["KV cache"]


def _changes(config: RunConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """(role, key -> value) of everything that may save memory."""
    learner = config.learner
    model = config.model
    if isinstance(model.tuning, Lora):
        if model.tuning.quantize == "none":
            yield "learner", {"model.tuning.quantize": "nf4"}
    else:
        yield "learner", {"model.tuning": {"kind": "lora"}}
    for stage in range(learner.zero_stage + 1, 4):
        yield "learner", {"learner.zero_stage": stage}
    if learner.zero_stage:
        twice = 2 * learner.num_ranks
        yield "learner", {"learner.num_ranks": twice}
    if learner.offload == "none":
        yield "learner", {"learner.offload": "optimizer"}
        yield "learner", {"learner.offload": "params", "learner.zero_stage": 3}
    if not learner.gradient_checkpointing:
        yield "learner", {"learner.gradient_checkpointing": True}
    if learner.micro_batch > 1 and not learner.fast.pack_tokens:
        yield "learner", {"learner.micro_batch": learner.micro_batch // 2}
    yield "learner", {"model.max_length": model.max_length // 2}
    if model.dtype == "float32":
        yield "learner", {"model.dtype": "bfloat16"}
    if config.rollout.num_gpus:
        split = 2 * config.rollout.engine.tensor_parallel_size
        yield (
            "rollout",
            {
                "rollout.engine.tensor_parallel_size": split,
                "rollout.num_gpus": split,
            },
        )


def _changed(
    config: RunConfig,
    changes: Mapping[str, Any],
) -> RunConfig | None:
    """The config with these values, None where they are refused."""
    values = copy.deepcopy(config.model_dump())
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[name] = value
    try:
        return RunConfig.model_validate(values)
    except ValidationError:
        return None


def _typed(value: Any) -> str:
    if isinstance(value, dict):
        inner = [f'{key} = "{setting}"' for key, setting in value.items()]
        return "'{" + ", ".join(inner) + "}'"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)

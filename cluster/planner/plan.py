"""The plan of a run: memory of its actors and nodes, work and seconds of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from cluster.planner.activations import activations
from cluster.planner.gpu_kinds import (
    GIB,
    GPU_KINDS,
    PROCESS_BYTES,
    GpuKind,
    detected_kind,
)
from cluster.planner.judging import reward_seats
from cluster.planner.nodes import Nodes, nodes_of
from cluster.planner.rows import Rows, longest_rows
from cluster.planner.sampling import sampling
from cluster.planner.seats import (
    Seat,
    engine_parts,
    gpu_limit,
    learner_parts,
    taking_turns,
)
from cluster.planner.shape import ModelShape, shape_of
from cluster.planner.training import trained
from cluster.planner.work import Seconds, Work, push_bytes, seconds_of, work_of
from cluster.runtime.judge_engines import engine_config
from common.config import Model, Rollout, RunConfig
from common.config.eyes import engine_eyes
from learner.batch.ahead import MAX_BYTES

MM_CACHE_BYTES = 1 * GIB
"""`mm_processor_cache_gb` of `actors/engine/arguments.py`."""

INPUT_WORKER_BYTES = 0.3e9
"""RAM of a process that reads pictures, as seen on a CPU: 0.6 GB of two."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run takes.

    Attributes:
        kind: of the GPUs; None without any, or when it is not known.
        numel, trained_numel: parameters of the policy, and those that train.
        seats: a kind of actor each.
        positions: of the policy.
        full_sequences: of `max_length` tokens in the cache of an engine; 0 when its size is not known.
        seconds: None without a kind of GPU.
    """

    family: str
    kind: GpuKind | None
    numel: int
    trained_numel: int
    positions: int
    rows: Rows
    seats: tuple[Seat, ...]
    nodes: Nodes
    work: Work
    seconds: Seconds | None
    full_sequences: float


def kind_of(config: RunConfig) -> GpuKind | None:
    """The kind of GPU that is named, or this machine's where the run is on it."""
    if config.cluster.gpu is not None:
        return GPU_KINDS[config.cluster.gpu]
    return detected_kind()


@lru_cache(maxsize=8)
def cached_shape(path: str) -> ModelShape:
    """`shape_of`, built once per path and process."""
    return shape_of(path)


def plan_run(
    config: RunConfig,
    kind: GpuKind | None,
    shapes: Mapping[str, ModelShape] | None = None,
) -> Plan:
    """Plan a run.

    Args:
        shapes: by path, of models that are not on this disk.

    Raises:
        UserError: a model's config cannot be used.
    """
    known = shapes or {}

    def shape_at(path: str) -> ModelShape:
        return known.get(path) or cached_shape(path)

    shape = shape_at(config.model.path)
    rows = longest_rows(config, shape)
    learner_gpus = config.learner.num_gpus
    state = trained(config, shape)
    rank = Seat(
        "learner",
        config.learner.num_ranks,
        learner_gpus,
        learner_parts(state, activations(config, shape, rows), learner_gpus),
        {
            "process": PROCESS_BYTES,
            **_input_bytes(config),
            "hooks": state.hooks,
            **state.offloaded,
        },
        gpu_limit(learner_gpus, kind),
    )
    count = config.rollout.num_workers
    engine = _engine_seat("rollout", count, config.model, config.rollout, shape, kind)
    engine, rank = taking_turns(config, engine, rank)
    judges = _judge_seats(config, shape_at, kind)
    seats = (engine, *reward_seats(config, kind), *judges, rank)
    work = work_of(config, shape, rows)
    seconds = None
    if kind is not None and learner_gpus:
        seconds = seconds_of(config, shape, rows, work, kind)
    memory = kind.memory if kind is not None and config.rollout.num_gpus else None
    cache = sampling(config.model, config.rollout, shape, memory)
    return Plan(
        family=shape.family,
        kind=kind,
        numel=shape.numel,
        trained_numel=state.numel,
        positions=shape.positions,
        rows=rows,
        seats=seats,
        nodes=nodes_of(config, shape, seats, push_bytes(config, shape)),
        work=work,
        seconds=seconds,
        full_sequences=max(0.0, cache.full_sequences),
    )


def _input_bytes(config: RunConfig) -> dict[str, float]:
    """Processes that read a rank's pictures ahead of its step, and what they have ready."""
    workers = config.learner.input_workers
    if not workers:
        return {}
    return {"input workers": workers * INPUT_WORKER_BYTES, "pictures": MAX_BYTES}


def _judge_seats(
    config: RunConfig,
    shape_at: Callable[[str], ModelShape],
    kind: GpuKind | None,
) -> Iterator[Seat]:
    for number, eye in enumerate(engine_eyes(config.reward.judge)):
        judge = engine_config(config, eye)
        shape = shape_at(eye.path)
        role = f"judge {number}"
        yield _engine_seat(
            role, eye.num_engines, judge.model, judge.rollout, shape, kind
        )


def _engine_seat(
    role: str,
    count: int,
    model: Model,
    rollout: Rollout,
    shape: ModelShape,
    kind: GpuKind | None,
) -> Seat:
    gpus = rollout.num_gpus
    memory = kind.memory if kind is not None and gpus else None
    engine = sampling(model, rollout, shape, memory)
    return Seat(
        role,
        count,
        gpus,
        engine_parts(engine, gpus),
        {"process": PROCESS_BYTES, "pictures": MM_CACHE_BYTES},
        gpu_limit(gpus, kind),
    )

"""Which actor gets which CPUs and GPUs. Arithmetic only: it is printed by --dry-run before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.runtime.judge_engines import judge_seats
from common.config import RunConfig

# What DeepSpeed keeps in CPU memory, as the table says it.
OFFLOADED = {
    "none": "",
    "optimizer": ", optimizer on CPU",
    "params": ", params and optimizer on CPU",
}


@dataclass(frozen=True, slots=True)
class Bundle:
    """The resources of one actor, in Ray's logical CPUs and GPUs.

    Attributes:
        beside: the actor that has the same GPUs, and works while this one does not; "" for GPUs of its own.
        turn: its number among the actors that share them.
    """

    name: str
    num_cpus: float
    num_gpus: float
    holds: str
    beside: str = ""
    turn: int = 0


def plan(config: RunConfig) -> list[Bundle]:
    """One bundle per actor: rollout workers, reward workers, the judge's engines, learner ranks."""
    return [
        *rollout_bundles(config),
        *judging_plan(config),
        *_ranks(config),
    ]


def measuring_plan(config: RunConfig, judges: bool) -> list[Bundle]:
    """The same without a learner, and where nothing is judged without judges."""
    bundles = list(rollout_bundles(config))
    if judges:
        bundles += judging_plan(config)
    return bundles


def judging_plan(config: RunConfig) -> list[Bundle]:
    """Reward workers and the judge's engines alone."""
    return [*_reward_bundles(config), *_judge_bundles(config)]


def missing_models(config: RunConfig) -> list[str]:
    """Models of the run without a config.json on this disk, whose memory cannot be planned."""
    paths = [config.model.path]
    for seat in judge_seats(config):
        paths.append(seat.eye.path)
    return [path for path in paths if not (Path(path) / "config.json").is_file()]


def rollout_bundles(config: RunConfig) -> Iterator[Bundle]:
    """Of the engines that sample."""
    rollout = config.rollout
    engine = "vLLM engine"
    if rollout.deterministic:
        engine = "vLLM engine (stepped)"
    for index in range(rollout.num_workers):
        name = f"rollout/{index}"
        yield Bundle(name, rollout.num_cpus, rollout.num_gpus, engine)


def _reward_bundles(config: RunConfig) -> Iterator[Bundle]:
    reward = config.reward
    for index in range(reward.num_workers):
        name = f"reward/{index}"
        holds = f"{reward.judge.kind} judge"
        yield Bundle(name, reward.num_cpus, reward.num_gpus, holds)


def _judge_bundles(config: RunConfig) -> Iterator[Bundle]:
    for seat in judge_seats(config):
        eye = seat.eye
        holds = f"vLLM engine of the judge, {Path(eye.path).name}"
        yield Bundle(seat.name, eye.num_cpus, eye.num_gpus, holds)


def _ranks(config: RunConfig) -> Iterator[Bundle]:
    learner = config.learner
    holds = (
        f"{learner.engine} rank, {config.model.tuning.kind}, "
        f"ZeRO {learner.zero_stage}{OFFLOADED[learner.offload]}"
    )
    for rank in range(learner.num_ranks):
        name = f"learner/{rank}"
        bundle = Bundle(name, learner.num_cpus, learner.num_gpus, holds)
        if config.cluster.placement == "colocated":
            bundle = _beside_engine(bundle, config, rank)
        yield bundle


def _beside_engine(bundle: Bundle, config: RunConfig, rank: int) -> Bundle:
    """The bundle of a rank that shares the GPUs of an engine; equally many sit with every engine."""
    ranks_per_engine = config.learner.num_ranks // config.rollout.num_workers
    engine, turn = divmod(rank, ranks_per_engine)
    beside = f"rollout/{engine}"
    holds = f"{bundle.holds}, shares the GPUs of {beside}"
    return replace(bundle, holds=holds, beside=beside, turn=turn)


def describe(bundles: Sequence[Bundle]) -> str:
    """The placement map as a plain table, with the sums in the last row."""
    num_cpus = 0.0
    num_gpus = 0.0
    width = 0
    for bundle in bundles:
        num_cpus += bundle.num_cpus
        if not bundle.beside:
            num_gpus += bundle.num_gpus
        width = max(width, len(bundle.name))
    total = Bundle("total", num_cpus, num_gpus, f"{len(bundles)} actors")
    lines = [f"{'actor':<{width}}  {'CPUs':>5}  {'GPUs':>5}  holds"]
    for row in (*bundles, total):
        resources = f"{row.num_cpus:>5g}  {row.num_gpus:>5g}"
        lines.append(f"{row.name:<{width}}  {resources}  {row.holds}")
    return "\n".join(lines)

"""Which actor gets which CPUs and GPUs. Arithmetic only: it is printed by --dry-run before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.config import RunConfig

OFFLOADED = {
    "none": "",
    "optimizer": ", optimizer on CPU",
    "params": ", params and optimizer on CPU",
}


@dataclass(frozen=True, slots=True)
class Bundle:
    """The resources of one actor, in Ray's logical CPUs and GPUs."""

    name: str
    num_cpus: float
    num_gpus: float
    holds: str


def plan(config: RunConfig) -> list[Bundle]:
    """One bundle per actor: rollout workers, reward workers, learner ranks."""
    rollout, reward, learner = config.rollout, config.reward, config.learner
    bundles = []
    engine = "vLLM engine (stepped)" if rollout.deterministic else "vLLM engine"
    for index in range(rollout.num_workers):
        name = f"rollout/{index}"
        bundles.append(Bundle(name, rollout.num_cpus, rollout.num_gpus, engine))
    judge = f"{reward.judge.kind} judge"
    for index in range(reward.num_workers):
        name = f"reward/{index}"
        bundles.append(Bundle(name, reward.num_cpus, 0, judge))
    trainer = (
        f"{learner.engine} rank, {config.model.tuning.kind}, "
        f"ZeRO {learner.zero_stage}{OFFLOADED[learner.offload]}"
    )
    for rank in range(learner.num_ranks):
        name = f"learner/{rank}"
        bundles.append(Bundle(name, learner.num_cpus, learner.num_gpus, trainer))
    return bundles


def describe(bundles: Sequence[Bundle]) -> str:
    """The placement map as a plain table."""
    width = max(len(bundle.name) for bundle in bundles)
    lines = [f"{'actor':<{width}}  {'CPUs':>5}  {'GPUs':>5}  holds"]
    total = Bundle(
        name="total",
        num_cpus=sum(bundle.num_cpus for bundle in bundles),
        num_gpus=sum(bundle.num_gpus for bundle in bundles),
        holds=f"{len(bundles)} actors",
    )
    for row in (*bundles, total):
        resources = f"{row.num_cpus:>5g}  {row.num_gpus:>5g}"
        lines.append(f"{row.name:<{width}}  {resources}  {row.holds}")
    return "\n".join(lines)

"""Which actor gets which CPUs and GPUs. Arithmetic only: it is printed by --dry-run before anything starts."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import RunConfig


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
    sampled = "vLLM engine" + (" (stepped)" if rollout.deterministic else "")
    on_cpu = {
        "none": "",
        "optimizer": ", optimizer on CPU",
        "params": ", params and optimizer on CPU",
    }
    trained = f"{learner.engine} rank, {config.model.tuning.kind}, ZeRO {learner.zero_stage}{on_cpu[learner.offload]}"
    return [
        *(
            Bundle(f"rollout/{i}", rollout.num_cpus, rollout.num_gpus, sampled)
            for i in range(rollout.num_workers)
        ),
        *(
            Bundle(f"reward/{i}", reward.num_cpus, 0, f"{reward.judge.kind} judge")
            for i in range(reward.num_workers)
        ),
        *(
            Bundle(f"learner/{i}", learner.num_cpus, learner.num_gpus, trained)
            for i in range(learner.num_ranks)
        ),
    ]


def describe(bundles: list[Bundle]) -> str:
    """The placement map as a plain table."""
    width = max(len(bundle.name) for bundle in bundles)
    lines = [f"{'actor':<{width}}  {'CPUs':>5}  {'GPUs':>5}  holds"]
    lines += [
        f"{b.name:<{width}}  {b.num_cpus:>5g}  {b.num_gpus:>5g}  {b.holds}"
        for b in bundles
    ]
    cpus, gpus = sum(b.num_cpus for b in bundles), sum(b.num_gpus for b in bundles)
    return "\n".join(
        [*lines, f"{'total':<{width}}  {cpus:>5g}  {gpus:>5g}  {len(bundles)} actors"]
    )

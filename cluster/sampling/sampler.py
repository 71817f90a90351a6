"""Which prompt comes next: the way that the config names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cluster.sampling.prompt_sampler import PromptSampler, SamplerState
from cluster.sampling.worth_sampler import RoundState, WorthSampler
from common.config import RunConfig
from common.records import Dropped, Prompt


class Sampler(Protocol):
    """Hands out prompts; what was handed out and has not ended at a kill is handed out again."""

    def next(self) -> tuple[str, Prompt | Dropped]:
        """A group id and its prompt, or why its row cannot be used."""
        ...

    def finish(self, group_id: str, worth: float | None = None) -> None:
        """The group has come to its outcome; `worth` is what it taught (`cluster.sampling.worth`), None for unknown."""
        ...


def build_sampler(
    config: RunConfig,
    prompts: Sequence[Prompt],
    epochs: SamplerState,
    rounds: RoundState,
) -> Sampler:
    """Continue at one of the states: `epochs`, or `rounds` for prompts that are drawn by worth."""
    if config.rollout.draw == "epochs":
        return PromptSampler(prompts, config.run.seed, epochs)
    return WorthSampler(
        prompts,
        config.run.seed,
        rounds,
        most_in_flight(config),
        config.rollout.draw_power,
    )


def most_in_flight(config: RunConfig) -> int:
    """Groups that may be handed out and not ended, for all sources together.

    Admission starts groups for the steps of `max_staleness` + 1 publishes; a step takes `global_batch` online pairs at
    most, and each source may start one group more than that, see `admission`.
    """
    num_steps = (config.loop.max_staleness + 1) * config.loop.publish_interval
    num_sources = len(config.online_sources)
    return num_steps * config.learner.global_batch + num_sources

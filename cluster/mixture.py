"""How many pairs of a step's global batch are online, and how many of these are BDHS's. A function of (seed, step):
resume needs no state.

The controller asks for future steps as well: that is how it knows how many prompts are worth sampling.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from common.config import Learner as LearnerConfig
from common.config import Mixture as MixtureConfig
from common.seeding import derive_seed
from common.sources import ONLINE_BDHS


class Mixture(Protocol):
    """The share of online pairs, step by step (from 0)."""

    def num_online(self, step: int) -> int:
        """Online pairs of this step, 0..global_batch."""
        ...

    def num_online_bdhs(self, step: int) -> int:
        """How many of the online pairs come from online BDHS, 0..num_online."""
        ...


def online_counts(
    mixture: Mixture, step: int, sources: Sequence[str]
) -> dict[str, int]:
    """Online pairs of this step by source; `sources` are the run's (`RunConfig.online_sources`)."""
    num_bdhs = mixture.num_online_bdhs(step)
    num_judged = mixture.num_online(step) - num_bdhs
    return {
        source: num_bdhs if source == ONLINE_BDHS else num_judged for source in sources
    }


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Every slot of the batch flips a coin: Mixed-DPO, arXiv 2407.02477 Eq. 4 (there: p = 0.5)."""

    online_fraction: float
    global_batch: int
    seed: int
    online_bdhs_fraction: float = 0.0

    def num_online(self, step: int) -> int:
        """Binomial(global_batch, online_fraction), drawn from (seed, step)."""
        coins = random.Random(derive_seed(self.seed, "mixture", step))
        return sum(
            coins.random() < self.online_fraction for _ in range(self.global_batch)
        )

    def num_online_bdhs(self, step: int) -> int:
        """A second coin for each online slot, from a stream of its own."""
        coins = random.Random(derive_seed(self.seed, "online_bdhs", step))
        return sum(
            coins.random() < self.online_bdhs_fraction
            for _ in range(self.num_online(step))
        )


@dataclass(frozen=True, slots=True)
class Ratio:
    """The same share in every batch; what does not divide is carried, so that the long-run share is exact (ours)."""

    online_fraction: float
    global_batch: int
    online_bdhs_fraction: float = 0.0

    def num_online(self, step: int) -> int:
        """floor((step + 1)·share) - floor(step·share) with share = online_fraction·global_batch."""
        return self._online_before(step + 1) - self._online_before(step)

    def num_online_bdhs(self, step: int) -> int:
        """The same with the number of online pairs so far in place of steps."""
        share = _fraction(self.online_bdhs_fraction)
        return int(self._online_before(step + 1) * share) - int(
            self._online_before(step) * share
        )

    def _online_before(self, step: int) -> int:
        return int(step * _fraction(self.online_fraction) * self.global_batch)


@dataclass(frozen=True, slots=True)
class Schedule(Ratio):
    """As `Ratio`, with a share that moves in equal parts from the first of `num_steps` to the last (ours)."""

    start_fraction: float = 0.0
    num_steps: int = 1

    def _online_before(self, step: int) -> int:
        """floor(global_batch · sum of the shares of all steps before)."""
        start, end = _fraction(self.start_fraction), _fraction(self.online_fraction)
        moving, last = min(step, self.num_steps), max(1, self.num_steps - 1)
        moved = Fraction(moving * (moving - 1), 2 * last)
        return int(
            self.global_batch
            * (moving * start + moved * (end - start) + (step - moving) * end)
        )


def _fraction(share: float) -> Fraction:
    return Fraction(share).limit_denominator(1_000_000)


def build_mixture(config: MixtureConfig, learner: LearnerConfig, seed: int) -> Mixture:
    """The configured mixture for this learner's batches and steps; `seed` is the run's."""
    batch, share, bdhs = (
        learner.global_batch,
        config.online_fraction,
        config.online_bdhs_fraction,
    )
    if config.kind == "bernoulli":
        return Bernoulli(share, batch, seed, bdhs)
    if config.kind == "ratio":
        return Ratio(share, batch, bdhs)
    return Schedule(share, batch, bdhs, config.start_fraction, learner.num_steps)

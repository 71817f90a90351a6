"""How many pairs of a step's global batch are online, and how many of these come from online BDHS.

A function of (seed, step), so that a resume needs no state. The controller asks for future steps as well: that is how
it knows how many prompts are worth sampling. Steps count from 1.
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
    """The share of online pairs, step by step (from 1)."""

    def num_online(self, step: int) -> int:
        """Online pairs of this step, 0..global_batch."""
        ...

    def num_online_bdhs(self, step: int) -> int:
        """How many of the online pairs come from online BDHS, 0..num_online."""
        ...


def online_counts(
    mixture: Mixture,
    step: int,
    sources: Sequence[str],
) -> dict[str, int]:
    """Online pairs of this step by source; `sources` are the run's (`RunConfig.online_sources`)."""
    num_bdhs = mixture.num_online_bdhs(step)
    num_judged = mixture.num_online(step) - num_bdhs
    counts = {}
    for source in sources:
        counts[source] = num_bdhs if source == ONLINE_BDHS else num_judged
    return counts


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Every slot of the batch flips a coin: Mixed-DPO, arXiv 2407.02477 Eq. 4 (there: p = 0.5)."""

    online_fraction: float
    global_batch: int
    seed: int
    online_bdhs_fraction: float = 0.0

    def num_online(self, step: int) -> int:
        """Binomial(global_batch, online_fraction), drawn from (seed, step)."""
        return self._heads("mixture", step, self.global_batch, self.online_fraction)

    def num_online_bdhs(self, step: int) -> int:
        """A second coin for each online slot, from a stream of its own."""
        num_online = self.num_online(step)
        return self._heads("online_bdhs", step, num_online, self.online_bdhs_fraction)

    def _heads(
        self,
        stream: str,
        step: int,
        num_coins: int,
        fraction: float,
    ) -> int:
        # The streams are numbered from 0: old runs must resume with the same coins.
        seed = derive_seed(self.seed, stream, step - 1)
        coins = random.Random(seed)
        num_heads = 0
        for _ in range(num_coins):
            if coins.random() < fraction:
                num_heads += 1
        return num_heads


@dataclass(frozen=True, slots=True)
class Ratio:
    """The same share in every batch; what does not divide is carried, so that the long-run share is exact (ours)."""

    online_fraction: float
    global_batch: int
    online_bdhs_fraction: float = 0.0

    def num_online(self, step: int) -> int:
        """floor(step·share) - floor((step - 1)·share) with share = online_fraction·global_batch."""
        return self._online_until(step) - self._online_until(step - 1)

    def num_online_bdhs(self, step: int) -> int:
        """The same with the number of online pairs so far in place of steps."""
        return self._bdhs_until(step) - self._bdhs_until(step - 1)

    def _online_until(self, step: int) -> int:
        """Online pairs of steps 1 … step together."""
        share = _fraction(self.online_fraction)
        return int(step * share * self.global_batch)

    def _bdhs_until(self, step: int) -> int:
        """BDHS pairs among them."""
        share = _fraction(self.online_bdhs_fraction)
        return int(self._online_until(step) * share)


@dataclass(frozen=True, slots=True)
class Schedule(Ratio):
    """As `Ratio`, with a share that moves in equal parts from the first of `num_steps` to the last (ours)."""

    start_fraction: float = 0.0
    num_steps: int = 1

    def _online_until(self, step: int) -> int:
        """floor(global_batch · sum of the shares of steps 1 … step)."""
        start = _fraction(self.start_fraction)
        end = _fraction(self.online_fraction)
        num_moving = min(step, self.num_steps)
        num_after = step - num_moving
        # Share of step s: start + (s - 1)/(num_steps - 1)·(end - start), and Σ (s - 1) = n(n - 1)/2.
        intervals = max(1, self.num_steps - 1)
        moved = Fraction(num_moving * (num_moving - 1), 2 * intervals)
        shares = num_moving * start + moved * (end - start) + num_after * end
        return int(self.global_batch * shares)


def _fraction(share: float) -> Fraction:
    """The decimal that was written in the config; sums of floats would drift."""
    return Fraction(share).limit_denominator(1_000_000)


def build_mixture(
    config: MixtureConfig,
    learner: LearnerConfig,
    seed: int,
) -> Mixture:
    """The configured mixture for this learner's batches and steps; `seed` is the run's."""
    online = config.online_fraction
    bdhs = config.online_bdhs_fraction
    batch = learner.global_batch
    match config.kind:
        case "bernoulli":
            return Bernoulli(online, batch, seed, bdhs)
        case "ratio":
            return Ratio(online, batch, bdhs)
        case "schedule":
            start = config.start_fraction
            return Schedule(online, batch, bdhs, start, learner.num_steps)

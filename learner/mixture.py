"""How many pairs of a step's global batch are online. A function of (seed, step): resume needs no state.

The controller asks for future steps as well: that is how it knows how many prompts are worth sampling.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from common.config import Mixture as MixtureConfig
from common.seeding import derive_seed


class Mixture(Protocol):
    """The share of online pairs, step by step (from 0)."""

    def num_online(self, step: int) -> int:
        """Online pairs of this step, 0..global_batch."""
        ...


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Every slot of the batch flips a coin: Mixed-DPO, arXiv 2407.02477 Eq. 4 (there: p = 0.5)."""

    online_fraction: float
    global_batch: int
    seed: int

    def num_online(self, step: int) -> int:
        """Binomial(global_batch, online_fraction), drawn from (seed, step)."""
        coins = random.Random(derive_seed(self.seed, "mixture", step))
        return sum(coins.random() < self.online_fraction for _ in range(self.global_batch))


@dataclass(frozen=True, slots=True)
class Ratio:
    """The same share in every batch; what does not divide is carried, so that the long-run share is exact (ours)."""

    online_fraction: float
    global_batch: int

    def num_online(self, step: int) -> int:
        """floor((step + 1)·share) - floor(step·share) with share = online_fraction·global_batch."""
        share = Fraction(self.online_fraction).limit_denominator(1_000_000) * self.global_batch
        return int((step + 1) * share) - int(step * share)


def build_mixture(config: MixtureConfig, global_batch: int, seed: int) -> Mixture:
    """The configured mixture for batches of `global_batch` pairs; `seed` is the run's."""
    if config.kind == "bernoulli":
        return Bernoulli(config.online_fraction, global_batch, seed)
    return Ratio(config.online_fraction, global_batch)

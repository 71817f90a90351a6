"""δ of MPO's quality term (arXiv 2411.10442): the mean of previous rewards, against which a side is good or bad.

It is the mean of β·(logp - logp_ref) over both sides of every pair with the mpo loss in all *earlier* steps, 0 in the
first. Within a step it stands still, so it depends neither on how a batch is cut into micro-batches nor on ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RewardShift:
    """Sum and number of rewards so far; equal on all ranks, part of each rank's checkpoint."""

    total: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, counters: Mapping[str, float]) -> RewardShift:
        """As `counters` left it."""
        return cls(
            counters.get("reward_total", 0.0), int(counters.get("reward_count", 0))
        )

    @property
    def counters(self) -> dict[str, float]:
        """For a checkpoint; empty while no pair had the loss."""
        return (
            {"reward_total": self.total, "reward_count": self.count}
            if self.count
            else {}
        )

    @property
    def mean(self) -> float:
        """δ."""
        return self.total / self.count if self.count else 0.0

    def after(
        self, tables: Sequence[Mapping[str, Sequence[float]]], counts: Sequence[bool]
    ) -> RewardShift:
        """With the rewards of a step.

        Args:
            tables: of every rank, in order (`learner.update.PairTable`).
            counts: whether a pair has the loss, in the order of the tables' rows.
        """
        names = ("rewards/chosen", "rewards/rejected")
        columns = [
            [value for table in tables for value in table.get(name, ())]
            for name in names
        ]
        found = [
            value
            for column in columns
            for value, one in zip(column, counts, strict=True)
            if one
        ]
        return RewardShift(math.fsum([self.total, *found]), self.count + len(found))

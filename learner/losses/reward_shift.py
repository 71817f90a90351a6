"""δ of MPO's quality term (arXiv 2411.10442): the mean of previous rewards, against which a side is good or bad.

It is the mean of β·(logp - logp_ref) over both sides of every pair whose loss reads it in all *earlier* steps, 0 in the
first. Within a step it stands still, so it depends neither on how a batch is cut into micro-batches nor on ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress


@dataclass(frozen=True, slots=True)
class RewardShift:
    """Sum and number of rewards so far; equal on all ranks, part of each rank's checkpoint."""

    total: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, counters: Mapping[str, float]) -> RewardShift:
        """Restore it from a checkpoint's counters."""
        total = counters.get("reward_total", 0.0)
        return cls(total, int(counters.get("reward_count", 0)))

    @property
    def counters(self) -> dict[str, float]:
        """For a checkpoint; empty while no loss has read it."""
        if not self.count:
            return {}
        return {"reward_total": self.total, "reward_count": self.count}

    @property
    def mean(self) -> float:
        """δ: the mean of the rewards so far, 0 before the first step."""
        if not self.count:
            return 0.0
        return self.total / self.count

    def after(
        self,
        tables: Sequence[Mapping[str, Sequence[float]]],
        counts: Sequence[bool],
    ) -> RewardShift:
        """Add the rewards of a step.

        Args:
            tables: of every rank, in order (`learner.update.PairTable`).
            counts: whether a pair's loss reads the mean, in the order of the tables' rows.
        """
        rewards: list[float] = []
        for side in ("rewards/chosen", "rewards/rejected"):
            column: list[float] = []
            for table in tables:
                column += table.get(side, ())
            assert len(column) == len(counts), "one row per pair"
            rewards += compress(column, counts)
        # fsum is exact, so the order of ranks does not show.
        total = math.fsum([self.total, *rewards])
        count = self.count + len(rewards)
        return RewardShift(total, count)

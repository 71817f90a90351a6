"""Win rate against the start policy by the judge: (wins + ½ ties) / comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.records import Verdict
from reward.suites.bootstrap import Array, Columns, ratio

WIN_COUNTS = ("half_wins", "compared")

START_WIN_RATE = 0.5
"""Against itself the start policy ties every time."""


def win_of(verdict: Verdict) -> float:
    """1 when the first of two completions is better, 0 when the second is, ½ for a tie."""
    first, second = verdict.scores
    if first == second:
        return 0.5
    return float(first > second)


def win_counts(win: float) -> dict[str, int]:
    """What one comparison adds to the totals."""
    # In halves, so that counts are whole numbers.
    half_wins = round(2 * win)
    return {"half_wins": half_wins, "compared": 1}


def win_rate(totals: Columns) -> dict[str, Array]:
    """The win rate of summed counts."""
    half_wins = totals["half_wins"]
    compared = totals["compared"]
    return {"win_rate": ratio(half_wins, 2 * compared)}


def tie_with_itself(
    values: dict[str, float],
    resampled: dict[str, Array],
    num_samples: int,
    names: Sequence[str] = ("win_rate",),
) -> None:
    """Enter the win rates of the start policy against itself: it ties every time."""
    for name in names:
        values[name] = START_WIN_RATE
        resampled[name] = np.full(num_samples, START_WIN_RATE)

"""A metric over the steps of a run: where it began, where it is now, and how much it jumps anyway."""

from __future__ import annotations

import math
from collections import deque

MAX_ERRORS = 4.0
"""A change of fewer standard errors is noise: each step looks again, and a run has thousands."""


class Series:
    """Means of a metric's first and last values.

    Args:
        window: number of first values, and of last ones.
        begins_at: where the metric begins, if that is known; None for the mean of its first values.
    """

    def __init__(self, window: int, begins_at: float | None = None) -> None:
        self._window = window
        self._begins_at = begins_at
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=window)
        self._latest: float | None = None
        self._squares = 0.0
        self._num_jumps = 0

    def add(self, value: float) -> None:
        """The next value; one that is not finite says nothing."""
        if not math.isfinite(value):
            return
        if self._latest is not None:
            self._squares += (value - self._latest) ** 2
            self._num_jumps += 1
        self._latest = value
        # A value is in one mean only.
        if self._begins_at is None and len(self._first) < self._window:
            self._first.append(value)
        else:
            self._last.append(value)

    @property
    def is_known(self) -> bool:
        """Whether the means have all their values."""
        return len(self._last) == self._last.maxlen

    @property
    def first(self) -> float:
        """Where the metric began."""
        if self._begins_at is not None:
            return self._begins_at
        return sum(self._first) / len(self._first)

    @property
    def now(self) -> float:
        """Where it is."""
        return sum(self._last) / len(self._last)

    @property
    def has_moved(self) -> bool:
        """Whether the two differ by more than the metric's jumps from step to step explain.

        The variance of a value is half the mean square of these jumps: a slow drift hardly adds to it. A metric that
        began at one known value, as a drift from the reference does, has no error there.
        """
        variance = self._squares / self._num_jumps / 2
        inverse_counts = 1 / len(self._last)
        if self._begins_at is None:
            inverse_counts += 1 / len(self._first)
        error = math.sqrt(variance * inverse_counts)
        return abs(self.now - self.first) > MAX_ERRORS * error


def lower_bound(share: float, count: float, errors: float) -> float:
    """Wilson's lower bound of a share that was seen in `count` cases (Wilson 1927), `errors` standard errors below.

    With z for `errors`: (p + z²/2n - z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).
    """
    square = errors**2 / count
    spread = share * (1 - share) / count + square / (4 * count)
    return (share + square / 2 - errors * math.sqrt(spread)) / (1 + square)

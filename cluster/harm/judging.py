"""Detector of a judge that prefers a form, not a content: the longer answer, or the place where it is shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from cluster.harm.alert import Alert, Metrics, Said
from cluster.harm.series import lower_bound
from cluster.harm.tally import COUNTS

NUM_STEPS = 20
"""Steps whose groups are counted together."""
ERRORS = 3.0
"""The share must lie above its limit by so many standard errors."""


class Preference:
    """Warns when a share of judged groups is too large to be chance.

    Args:
        metric: the share; `COUNTS` names the number of groups that it rests on.
        most: the largest share that is let pass.
        both_ways: whether as small a share is as bad.
        tell: the sentence of (share, number of groups).
    """

    def __init__(
        self,
        kind: str,
        metric: str,
        most: float,
        tell: Callable[[float, int], str],
        both_ways: bool = False,
    ) -> None:
        self._kind = kind
        self._metric = metric
        self._most = most
        self._tell = tell
        self._both_ways = both_ways
        # (step, wins, groups)
        self._steps: deque[tuple[int, float, float]] = deque(maxlen=NUM_STEPS)
        self._said = Said()

    def step(self, step: int, metrics: Metrics) -> Alert | None:
        """See `Detector`; a step without judged groups says nothing."""
        if self._metric not in metrics:
            return None
        count = metrics[COUNTS[self._metric]]
        wins = metrics[self._metric] * count
        self._steps.append((step, wins, count))
        num_groups = sum(count for _, _, count in self._steps)
        share = sum(wins for _, wins, _ in self._steps) / num_groups
        preferred = max(share, 1 - share) if self._both_ways else share
        if lower_bound(preferred, num_groups, ERRORS) <= self._most:
            return None
        if not self._said.is_news(preferred - 0.5):
            return None
        first_step = self._steps[0][0]
        text = self._tell(share, round(num_groups))
        return Alert(self._kind, self._metric, step, first_step, text)

"""Detectors of metrics that leave where they began: drift from the reference, length, cut answers, diversity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from cluster.harm.alert import Alert, Metrics, Said
from cluster.harm.series import Series

Worsening: TypeAlias = Callable[[float, float], float]
"""(where a metric began, where it is) -> how much worse that is; 0 or less for no worse."""

SIGNS_FROM = 0.5
"""Share of the limit from which on there are signs of a shift."""


def fall(first: float, now: float) -> float:
    """By how much a metric has fallen."""
    return first - now


def growth(first: float, now: float) -> float:
    """By how much it has grown."""
    return now - first


def relative_growth(first: float, now: float) -> float:
    """By which share of its beginning it has grown."""
    return now / first - 1 if first > 0 else 0.0


def share_lost(first: float, now: float) -> float:
    """Which share of its beginning is gone."""
    return 1 - now / first if first > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Shifted:
    """What a shift's sentence is made of."""

    first: float
    now: float
    amount: float
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Limit:
    """When a shift is one.

    Attributes:
        worsening: what counts.
        most: no more of it is let pass.
        begins_at: where the metric begins, if that is known; None for the mean of its first values.
    """

    worsening: Worsening
    most: float
    begins_at: float | None = None


class Shift:
    """Warns when the mean of a metric's last steps is worse than where it began, by more than a limit and than noise.

    Args:
        window: number of last steps, and of first ones.
        tell: the sentence, without the steps.
    """

    def __init__(
        self,
        kind: str,
        metric: str,
        limit: Limit,
        window: int,
        tell: Callable[[Shifted], str],
    ) -> None:
        self._kind = kind
        self._metric = metric
        self._limit = limit
        self._tell = tell
        self._series = Series(window, limit.begins_at)
        self._said = Said()
        self._since: int | None = None

    def step(self, step: int, metrics: Metrics) -> Alert | None:
        """See `Detector`; a step without the metric says nothing."""
        if self._metric not in metrics:
            return None
        series = self._series
        series.add(metrics[self._metric])
        if not series.is_known:
            return None
        amount = self._limit.worsening(series.first, series.now)
        if amount < SIGNS_FROM * self._limit.most:
            self._since = None
            return None
        if self._since is None:
            self._since = step
        if amount < self._limit.most or not series.has_moved:
            return None
        if not self._said.is_news(amount):
            return None
        shifted = Shifted(series.first, series.now, amount, metrics)
        text = self._tell(shifted)
        return Alert(self._kind, self._metric, step, self._since, text)

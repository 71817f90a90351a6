"""Metrics with intervals, by the percentile bootstrap. Scenes are redrawn, not single answers.

Counts come as columns of shape (scenes,). Redrawing gives totals of shape (resamplings,), and a statistic makes metrics
of that shape from them: every metric is a ratio of totals. The point estimate is the same statistic of one resampling
that draws every scene once, so that estimate and intervals share every line of the formulas.
Source: Efron, Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Columns: TypeAlias = Mapping[str, Array]
Statistic: TypeAlias = Callable[[Columns], dict[str, Array]]


def ratio(part: Array, whole: Array) -> Array:
    """part / whole, and 0 where the whole is 0."""
    # `where` leaves the other entries of `out` as they are.
    quotient = np.zeros_like(part, dtype=np.float64)
    has_whole = whole != 0
    np.divide(part, whole, out=quotient, where=has_whole)
    return quotient


def columns_of(
    rows: Collection[Mapping[str, float]],
    names: Collection[str],
) -> dict[str, Array]:
    """Rows of counts, one per scene, as columns; a count that a row lacks is 0."""
    columns: dict[str, Array] = {}
    for name in names:
        column = [row.get(name, 0) for row in rows]
        columns[name] = np.asarray(column, dtype=np.float64)
    return columns


def estimate(columns: Columns, statistic: Statistic) -> dict[str, float]:
    """The statistic of all scenes."""
    totals: dict[str, Array] = {}
    for name, column in columns.items():
        total = column.sum()
        totals[name] = np.asarray([total], dtype=np.float64)
    metrics: dict[str, float] = {}
    for name, samples in statistic(totals).items():
        metrics[name] = float(samples[0])
    return metrics


def resample(
    columns: Columns,
    statistic: Statistic,
    num_samples: int,
    seed: int,
) -> dict[str, Array]:
    """The statistic of `num_samples` draws of scenes with replacement: metric -> (num_samples,).

    Equal seeds give equal draws, so that two policies that answered the same scenes are resampled as pairs. Without
    scenes there is nothing to draw, and no metric.
    """
    # All columns have one value per scene.
    some_column = next(iter(columns.values()))
    num_scenes = len(some_column)
    if num_scenes == 0:
        return {}
    draws = draw(num_scenes, num_samples, seed)
    totals: dict[str, Array] = {}
    for name, column in columns.items():
        totals[name] = draws @ column
    return statistic(totals)


def interval(samples: Array, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values."""
    # Percent below the lower and above the upper bound.
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(samples, (tail, 100 - tail))
    return float(low), float(high)


def intervals_of(resampled: Columns) -> dict[str, tuple[float, float]]:
    """The 95 % interval of every metric."""
    bounds: dict[str, tuple[float, float]] = {}
    for name, samples in resampled.items():
        bounds[name] = interval(samples)
    return bounds


def intervals(
    columns: Columns,
    statistic: Statistic,
    num_samples: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals, see `resample`."""
    resampled = resample(columns, statistic, num_samples, seed)
    return intervals_of(resampled)


def draw(num_scenes: int, num_samples: int, seed: int) -> Array:
    """How often every resampling draws every scene, (num_samples, num_scenes)."""
    rng = np.random.default_rng(seed)
    # These numbers are multinomial, so that one matrix product redraws all totals.
    shares = np.full(num_scenes, 1 / num_scenes)
    draws = rng.multinomial(
        num_scenes,
        shares,
        num_samples,
    )
    # As floats: integer matrix products do not use BLAS.
    return draws.astype(np.float64)

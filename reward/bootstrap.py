"""Metrics with intervals. A metric is a ratio of totals; the percentile bootstrap redraws scenes, not single answers.

Counts come as columns with one value per scene. A statistic gets the columns' totals, each an array with one value per
resampling, and returns metrics of the same shape: point estimate and bootstrap share every line of the formulas.
Source: Efron, Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Columns: TypeAlias = Mapping[str, Array]
Statistic: TypeAlias = Callable[[Columns], dict[str, Array]]


def ratio(part: Array, whole: Array) -> Array:
    """part / whole, and 0 where the whole is 0."""
    return np.divide(
        part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole != 0
    )


def estimate(columns: Columns, statistic: Statistic) -> dict[str, float]:
    """The statistic of all scenes."""
    totals = {
        name: np.asarray([values.sum()], dtype=np.float64)
        for name, values in columns.items()
    }
    return {name: float(values[0]) for name, values in statistic(totals).items()}


def intervals(
    columns: Columns,
    statistic: Statistic,
    num_samples: int,
    seed: int,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals over `num_samples` draws of scenes with replacement; equal seeds give equal intervals."""
    num_scenes = len(next(iter(columns.values())))
    if num_scenes == 0:
        return {}
    # How often each scene is drawn is multinomial, so one matrix product redraws all totals.
    times = np.random.default_rng(seed).multinomial(
        num_scenes, np.full(num_scenes, 1 / num_scenes), num_samples
    )
    totals = {
        name: times.astype(np.float64) @ values for name, values in columns.items()
    }
    tail = 100 * (1 - level) / 2
    bounds = {
        name: np.percentile(values, (tail, 100 - tail))
        for name, values in statistic(totals).items()
    }
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}

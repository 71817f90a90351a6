"""Means of first and last values, and what counts as noise."""

from __future__ import annotations

import random

import pytest

from cluster.harm.series import Series, lower_bound


def series_of(
    values: list[float], window: int = 3, begins_at: float | None = None
) -> Series:
    series = Series(window, begins_at)
    for value in values:
        series.add(value)
    return series


def test_first_and_last_values_by_hand() -> None:
    """(1 + 2 + 3) / 3 = 2, (5 + 6 + 10) / 3 = 7; the 4 between them is in neither."""
    series = series_of([1, 2, 3, 4, 5, 6, 10])
    assert series.is_known
    assert (series.first, series.now) == (2, 7)


def test_a_short_series_is_not_known() -> None:
    assert not series_of([1, 2, 3, 4, 5]).is_known
    assert series_of([1, 2, 3, 4, 5, 6]).is_known


def test_a_known_beginning_is_no_value() -> None:
    """(1 + 2 + 3) / 3 = 2 from the third value on, whose variance is half of 1: 4 errors of √(0.5 / 3) are 1.63."""
    assert not series_of([1, 2], begins_at=0).is_known
    series = series_of([1, 2, 3], begins_at=0)
    assert series.is_known
    assert (series.first, series.now) == (0, 2)
    assert series.has_moved
    assert not series_of([1, 2, 3], begins_at=0.5).has_moved


def test_a_value_that_is_not_finite_says_nothing() -> None:
    series = series_of([1, float("nan"), 2, 3, 5, float("inf"), 6, 10])
    assert (series.first, series.now) == (2, 7)


def test_jumps_are_noise_and_a_drift_is_not() -> None:
    """Up and down by 1, the mean square of a jump is 4: no mean of three is known to 0.3. A slow rise has no jumps."""
    jumping = series_of([0, 2, 0, 2, 0, 2, 0, 2])
    assert not jumping.has_moved
    rising = series_of([0.1 * step for step in range(30)])
    assert rising.has_moved


def test_a_constant_has_not_moved() -> None:
    for value in (0.0, 0.1, -3.7, 1e9):
        series = series_of([value] * 20, 5)
        assert series.now - series.first == pytest.approx(0, abs=1e-6)


def test_noise_alone_rarely_moves_a_series() -> None:
    """Four standard errors: of 200 runs of 200 steps of plain noise, looked at after each, next to none moves."""
    num_moved = 0
    for seed in range(200):
        rng = random.Random(seed)
        series = Series(5)
        moved = False
        for step in range(200):
            series.add(rng.gauss(20, 6))
            # The noise itself is known after a few steps only.
            if step > 20:
                moved |= series.has_moved
        num_moved += moved
    assert num_moved <= 6


def test_the_lower_bound_by_hand() -> None:
    """All of n: n / (n + z²). Half of 100 at z = 2: (0.5 + 0.02 - 2 √(0.0025 + 0.0001)) / 1.04 = 0.4019."""
    assert lower_bound(1.0, 27, 3) == pytest.approx(27 / 36)
    assert lower_bound(0.5, 100, 2) == pytest.approx(0.4019, abs=1e-4)
    assert lower_bound(0.0, 10, 3) == pytest.approx(0)

"""The win rate at equal length: values by hand, a second optimiser, and what must not change it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from reward.suites.bootstrap import Array, draw
from reward.suites.length_control import (
    PRIOR_STD,
    equal_length_win_rate,
    length_terms,
)


def win_rate(wins: Array, terms: Array) -> float:
    once = np.ones((1, len(wins)))
    (value,) = equal_length_win_rate(wins, terms, once)
    return float(value)


def test_of_equal_lengths_it_is_the_win_rate() -> None:
    """(1 + 1 + ½ + 0) / 4 = 0.625."""
    lengths = np.asarray([3.0, 5.0, 8.0, 2.0])
    terms = length_terms(lengths, lengths)
    assert terms is not None and not terms.any()
    wins = np.asarray([1, 1, 0.5, 0])
    assert win_rate(wins, terms) == pytest.approx(0.625)


def test_length_terms_by_hand() -> None:
    """Differences 2, -2, 2, -2 have standard deviation 2, so the terms are ±tanh 1."""
    terms = length_terms(np.asarray([4.0, 1, 5, 2]), np.asarray([2.0, 3, 3, 4]))
    expected = np.tanh([1, -1, 1, -1])
    assert terms == pytest.approx(expected)


def test_one_difference_everywhere_tells_nothing() -> None:
    assert length_terms(np.asarray([4.0, 5, 6]), np.asarray([2.0, 3, 4])) is None


def test_wins_that_come_of_length_alone_are_taken_out() -> None:
    """100 longer answers of which 80 win, 100 shorter ones of which 20 win.

    θ ± φt = ± log 4 fits both groups, so θ = 0: 0.5 at equal length, as without the control (the groups are equal).
    With 300 longer ones (240 win) the plain win rate is 260 / 400 = 0.65, and θ is still 0 but for the weak prior.
    """
    longer = np.asarray([1.0] * 240 + [0.0] * 60)
    shorter = np.asarray([1.0] * 20 + [0.0] * 80)
    wins = np.concatenate([longer, shorter])
    terms = np.asarray([0.8] * 300 + [-0.8] * 100)
    assert wins.mean() == 0.65
    assert win_rate(wins, terms) == pytest.approx(0.5, abs=0.005)


def test_a_better_policy_stays_better() -> None:
    """σ⁻¹ of the group win rates 0.9 and 0.5 is log 9 and 0; θ is their mean, log 3, and σ(log 3) = 0.75."""
    longer = np.asarray([1.0] * 900 + [0.0] * 100)
    shorter = np.asarray([1.0] * 500 + [0.0] * 500)
    terms = np.asarray([0.8] * 1000 + [-0.8] * 1000)
    wins = np.concatenate([longer, shorter])
    assert win_rate(wins, terms) == pytest.approx(0.75, abs=0.002)


def test_another_optimiser_finds_the_same() -> None:
    rng = np.random.default_rng(3)
    terms = np.tanh(rng.normal(size=120))
    wins = rng.choice([0.0, 0.5, 1.0], size=120)
    draws = draw(120, 5, seed=1)
    fitted = equal_length_win_rate(wins, terms, draws)
    for weights, value in zip(draws, fitted, strict=True):

        def loss(parameters: Array, weights: Array = weights) -> float:
            theta, phi = parameters
            logits = theta + phi * terms
            likelihood = weights @ (wins * logits - np.logaddexp(0, logits))
            prior = -((phi / PRIOR_STD) ** 2) / 2
            return float(-likelihood - prior)

        theta, _ = minimize(loss, np.zeros(2)).x
        assert value == pytest.approx(1 / (1 + np.exp(-theta)), abs=1e-4)


@pytest.mark.parametrize("win", [0.0, 1.0])
def test_a_sweep_is_a_sweep(win: float) -> None:
    terms = np.tanh(np.linspace(-2, 2, 30))
    assert win_rate(np.full(30, win), terms) == pytest.approx(win, abs=1e-6)


def test_when_the_longer_answer_always_wins_the_number_stays_finite() -> None:
    terms = np.tanh(np.linspace(-2, 2, 30))
    wins = (terms > 0).astype(float)
    assert win_rate(wins, terms) == pytest.approx(0.5, abs=0.01)


def test_every_draw_is_fitted_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks or all at once; a draw without comparisons is 0."""
    rng = np.random.default_rng(0)
    terms = np.tanh(rng.normal(size=20))
    wins = rng.choice([0.0, 1.0], size=20)
    draws = draw(20, 7, seed=0)
    draws[3] = 0
    together = equal_length_win_rate(wins, terms, draws)
    monkeypatch.setattr("reward.suites.length_control.DRAWS_AT_ONCE", 40)
    in_blocks = equal_length_win_rate(wins, terms, draws)
    assert in_blocks == pytest.approx(together, abs=1e-8)
    assert together[3] == 0

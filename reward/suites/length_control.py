"""Win rate at equal length: what the judge would say if the answers were as long as the start policy's.

Judges like long answers. The chance that answer i wins is modelled as

    P(win_i) = σ(θ + φ · tanh((n_i − m_i) / s))

with n_i and m_i the lengths in words of the policy's and the start policy's answer, and s the standard deviation of
n − m. The length-controlled win rate is σ(θ): the same model where the lengths are equal. A tie counts as half a win.
Source: Dubois et al. 2024, Length-Controlled AlpacaEval (arXiv 2404.04475), section 3. Their third term, how hard an
instruction is, needs many policies and is left out. A weak normal prior on φ keeps it finite where the longer answer
always wins.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from reward.suites.bootstrap import Array, columns_of
from reward.suites.wins import WIN_COUNTS

WIN_RATES = ("win_rate", "lc_win_rate")
LENGTHS = ("words", "start_words")
CONSTANT_DIFFERENCE = (
    "all answers differ in length from the start policy's by the same number of words"
)
"""Why there is no win rate at equal length where `length_controlled` gives None."""
UNKNOWN_LENGTHS = "the lengths of the start policy's answers are not known"
PRIOR_STD = 5.0
"""Of φ. At φ = 5 a very long answer wins 99 times in 100: data of any size outweighs it below that."""
MAX_LOGIT = 30.0
"""θ has no maximum where every answer wins; a win rate of 1 - 1e-13 is close enough."""
PRIOR_WEIGHT = 1 / PRIOR_STD**2
MAX_STEP = 2.0
"""A full step of Newton's method may overshoot where the curve is flat."""
NUM_STEPS = 50
DAMPING = 1e-9
TOLERANCE = 1e-9
DRAWS_AT_ONCE = 1_000_000
"""Weights of draws that are held at once."""


def add_equal_length_wins(
    values: dict[str, float],
    resampled: dict[str, Array],
    missing: dict[str, str],
    rows: Collection[Mapping[str, float]],
    draws: Array,
) -> None:
    """Enter `lc_win_rate`, or why there is none. Arguments from `rows` on as of `length_controlled`."""
    for row in rows:
        if row.get("compared") and "start_words" not in row:
            missing["lc_win_rate"] = UNKNOWN_LENGTHS
            return
    controlled = length_controlled(rows, draws)
    if controlled is None:
        missing["lc_win_rate"] = CONSTANT_DIFFERENCE
    else:
        values["lc_win_rate"], resampled["lc_win_rate"] = controlled


def length_controlled(
    rows: Collection[Mapping[str, float]],
    draws: Array,
) -> tuple[float, Array] | None:
    """The length-controlled win rate of rows, and the same of every draw of rows; None when lengths tell nothing.

    Args:
        rows: counts per prompt; those with `compared` have `half_wins` and the lengths of both answers, `LENGTHS`.
        draws: how often every draw has every row, (draws, rows).
    """
    columns = columns_of(rows, (*WIN_COUNTS, *LENGTHS))
    is_compared = columns["compared"] == 1
    terms = length_terms(
        columns["words"][is_compared], columns["start_words"][is_compared]
    )
    if terms is None:
        return None
    wins = columns["half_wins"][is_compared] / 2
    once = np.ones((1, len(wins)))
    (value,) = equal_length_win_rate(wins, terms, once)
    resampled = equal_length_win_rate(wins, terms, draws[:, is_compared])
    return float(value), resampled


def length_terms(lengths: Array, start_lengths: Array) -> Array | None:
    """tanh((n − m) / s) per comparison; None when all answers differ by one and the same length, which tells nothing.

    Where both are always equally long, there is nothing to control, and all terms are 0.
    """
    differences = lengths - start_lengths
    spread = differences.std()
    if spread == 0:
        return np.zeros_like(differences) if not differences.any() else None
    terms: Array = np.tanh(differences / spread)
    return terms


def equal_length_win_rate(wins: Array, terms: Array, draws: Array) -> Array:
    """σ(θ) of the fitted model, once per draw.

    Args:
        wins: 1, ½ or 0, (comparisons,).
        terms: of `length_terms`, (comparisons,).
        draws: how often every draw has every comparison, (draws, comparisons).

    Returns:
        (draws,); 0 for a draw that has no comparison.
    """
    per_block = max(1, DRAWS_AT_ONCE // max(1, len(wins)))
    blocks: list[Array] = []
    for start in range(0, len(draws), per_block):
        weights = draws[start : start + per_block]
        blocks.append(_fit(wins, terms, weights))
    return np.concatenate(blocks)


def _fit(
    wins: Array,
    terms: Array,
    weights: Array,
) -> Array:
    """Newton's method for the maximum of the posterior, all draws at once."""
    num_draws = len(weights)
    theta = np.zeros(num_draws)
    phi = np.zeros(num_draws)
    for _ in range(NUM_STEPS):
        length_effects = np.outer(phi, terms)
        chances = _sigmoid(theta[:, None] + length_effects)
        uncertainty = chances * (1 - chances)
        slopes = _slopes(weights * (wins - chances), terms, phi)
        steps = _newton_steps(weights * uncertainty, terms, slopes)
        step_theta, step_phi = np.clip(steps, -MAX_STEP, MAX_STEP)
        last_theta = theta
        theta = np.clip(theta + step_theta, -MAX_LOGIT, MAX_LOGIT)
        phi = phi + step_phi
        moved = np.abs(theta - last_theta) + np.abs(step_phi)
        if moved.max(initial=0) < TOLERANCE:
            break
    is_drawn = weights.sum(axis=1) > 0
    return np.where(is_drawn, _sigmoid(theta), 0.0)


def _slopes(
    surprise: Array,
    terms: Array,
    phi: Array,
) -> tuple[Array, Array]:
    """The first derivatives by θ and φ."""
    of_prior = phi * PRIOR_WEIGHT
    slope_theta = surprise.sum(axis=1)
    slope_phi = surprise @ terms - of_prior
    return slope_theta, slope_phi


def _newton_steps(
    curvature: Array,
    terms: Array,
    slopes: tuple[Array, Array],
) -> tuple[Array, Array]:
    """The slopes times the inverse of the matrix of second derivatives."""
    # A trace of damping, where no comparison is left uncertain.
    theta_theta = curvature.sum(axis=1) + DAMPING
    theta_phi = curvature @ terms
    phi_phi = curvature @ terms**2 + PRIOR_WEIGHT
    determinant = theta_theta * phi_phi - theta_phi**2
    slope_theta, slope_phi = slopes
    for_theta = phi_phi * slope_theta - theta_phi * slope_phi
    for_phi = theta_theta * slope_phi - theta_phi * slope_theta
    return for_theta / determinant, for_phi / determinant


def _sigmoid(logits: Array) -> Array:
    # Beyond the limit exp would overflow.
    limited = np.clip(logits, -2 * MAX_LOGIT, 2 * MAX_LOGIT)
    chances: Array = 1 / (1 + np.exp(-limited))
    return chances

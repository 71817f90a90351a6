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

import numpy as np

from reward.suites.bootstrap import Array

PRIOR_STD = 5.0
"""Of φ. At φ = 5 a very long answer wins 99 times in 100: data of any size outweighs it below that."""
MAX_LOGIT = 30.0
"""θ has no maximum where every answer wins; a win rate of 1 - 1e-13 is close enough."""
NUM_STEPS = 50
TOLERANCE = 1e-9
DRAWS_AT_ONCE = 1_000_000
"""Weights of draws that are held at once."""


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


def _fit(wins: Array, terms: Array, weights: Array) -> Array:
    """Newton's method for the maximum of the posterior, all draws at once."""
    num_draws = len(weights)
    theta = np.zeros(num_draws)
    phi = np.zeros(num_draws)
    for _ in range(NUM_STEPS):
        chances = _sigmoid(theta[:, None] + phi[:, None] * terms)
        surprise = weights * (wins - chances)
        slope_theta = surprise.sum(axis=1)
        slope_phi = surprise @ terms - phi / PRIOR_STD**2
        # The second derivatives, with a trace of damping where no comparison is left uncertain.
        curvature = weights * chances * (1 - chances)
        theta_theta = curvature.sum(axis=1) + 1e-9
        theta_phi = curvature @ terms
        phi_phi = curvature @ terms**2 + 1 / PRIOR_STD**2
        determinant = theta_theta * phi_phi - theta_phi**2
        step_theta = (phi_phi * slope_theta - theta_phi * slope_phi) / determinant
        step_phi = (theta_theta * slope_phi - theta_phi * slope_theta) / determinant
        # A full step may overshoot where the curve is flat.
        last_theta, last_phi = theta, phi
        theta = np.clip(theta + np.clip(step_theta, -2, 2), -MAX_LOGIT, MAX_LOGIT)
        phi = phi + np.clip(step_phi, -2, 2)
        moved = np.abs(theta - last_theta) + np.abs(phi - last_phi)
        if moved.max(initial=0) < TOLERANCE:
            break
    is_drawn = weights.sum(axis=1) > 0
    return np.where(is_drawn, _sigmoid(theta), 0.0)


def _sigmoid(logits: Array) -> Array:
    # Beyond the limit exp would overflow.
    limited = np.clip(logits, -2 * MAX_LOGIT, 2 * MAX_LOGIT)
    chances: Array = 1 / (1 + np.exp(-limited))
    return chances

"""RLOO (arXiv 2402.14740): every completion of a judged group with its leave-one-out advantage.

    A_i = r_i - mean of the other k - 1 scores

The baseline of a completion does not depend on it, so Σ A_i ∇logp(y_i) / k is an unbiased estimate of the gradient of
the expected score. The loss's KL term takes the partner of each completion in its pair as its baseline.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.records import Judged, RolloutGroup, Verdict
from common.sources import RLOO
from reward.advantages import advantage_pairs


def leave_one_out(scores: Sequence[float]) -> tuple[float, ...]:
    """Each score minus the mean of the others (two or more)."""
    total = sum(scores)
    num_others = len(scores) - 1
    advantages: list[float] = []
    for score in scores:
        mean_of_others = (total - score) / num_others
        advantages.append(score - mean_of_others)
    return tuple(advantages)


def rloo_pairs(group: RolloutGroup, verdict: Verdict) -> Judged:
    """k / 2 pairs of completions with their advantages, or why there are none."""
    return advantage_pairs(group, verdict, RLOO, leave_one_out)

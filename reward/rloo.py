"""RLOO (arXiv 2402.14740): all completions of a judged group, two by two, each with its leave-one-out advantage.

    A_i = r_i - mean of the other k - 1 scores

The baseline of a completion does not depend on it, so Σ A_i ∇logp(y_i) / k is an unbiased estimate of the gradient of
the expected score. Partners are neighbours in the order of sampling, which has nothing to do with scores: the loss's KL
term takes each one's partner as its baseline. `chosen` is only the one of the two with the higher score.

Drops: `bad_verdict`, and `tie` when all scores are equal, for then every advantage is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.records import Dropped, PreferencePair, RolloutGroup, Verdict
from common.sources import RLOO
from reward.ranking import check_verdict, pair_of


def leave_one_out(scores: Sequence[float]) -> tuple[float, ...]:
    """Each score minus the mean of the others (two or more)."""
    total, others = sum(scores), len(scores) - 1
    return tuple(score - (total - score) / others for score in scores)


def rloo_pairs(
    group: RolloutGroup, verdict: Verdict
) -> tuple[PreferencePair, ...] | Dropped:
    """k / 2 pairs whose `scores` are advantages, or why there are none; k must be even."""
    if (bad := check_verdict(group, verdict)) is not None:
        return bad
    if len(set(verdict.scores)) == 1:
        return Dropped(group.id, "tie", f"all scores are {verdict.scores[0]:g}")
    rows = list(zip(group.completions, leave_one_out(verdict.scores), strict=True))
    assert len(rows) % 2 == 0, "the config refuses an odd number of completions"
    pairs = []
    for number, two in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        better, worse = sorted(two, key=lambda row: row[1], reverse=True)
        pairs.append(pair_of(group, f"{group.id}#{number}", RLOO, better, worse))
    return tuple(pairs)

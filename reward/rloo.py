"""RLOO (arXiv 2402.14740): all completions of a judged group, two by two, each with its leave-one-out advantage.

    A_i = r_i - mean of the other k - 1 scores

The baseline of a completion does not depend on it, so Σ A_i ∇logp(y_i) / k is an unbiased estimate of the gradient of
the expected score. Two completions that were sampled one after the other share a pair, which has nothing to do with
their scores: the loss's KL term takes each one's partner as its baseline. `chosen` is the one with the higher score.

A group is dropped as `bad_verdict`, or as `tie` when all scores are equal: then every advantage is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.records import Dropped, Judged, PreferencePair, RolloutGroup, Verdict
from common.sources import RLOO
from reward.ranking import check_verdict, pair_of


def leave_one_out(scores: Sequence[float]) -> tuple[float, ...]:
    """Each score minus the mean of the others (two or more)."""
    total = sum(scores)
    num_others = len(scores) - 1
    return tuple(score - (total - score) / num_others for score in scores)


def rloo_pairs(group: RolloutGroup, verdict: Verdict) -> Judged:
    """k / 2 pairs whose `scores` are advantages, or why there are none; k must be even."""
    dropped = check_verdict(group, verdict)
    if dropped is not None:
        return Judged(group.id, dropped=dropped)
    if len(set(verdict.scores)) == 1:
        detail = f"all scores are {verdict.scores[0]:g}"
        dropped = Dropped(group.id, "tie", detail)
        return Judged(group.id, dropped=dropped, verdict=verdict)
    num_completions = len(group.completions)
    assert num_completions % 2 == 0, "the config refuses an odd number of completions"
    advantages = leave_one_out(verdict.scores)
    pairs: list[PreferencePair] = []
    chosen: list[int] = []
    rejected: list[int] = []
    for first in range(0, num_completions, 2):
        better, worse = first, first + 1
        if advantages[worse] > advantages[better]:
            better, worse = worse, better
        pair_id = f"{group.id}#{first // 2}"
        scores = advantages[better], advantages[worse]
        pairs.append(pair_of(group, pair_id, RLOO, better, worse, scores))
        chosen.append(better)
        rejected.append(worse)
    return Judged(group.id, tuple(pairs), None, verdict, tuple(chosen), tuple(rejected))

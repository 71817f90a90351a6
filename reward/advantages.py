"""Groups whose completions are all trained on, each with its advantage: what RLOO and GRPO have in common.

The learner takes pairs, so the completions travel two by two, in the order in which they were sampled. Who shares a
pair has nothing to do with the scores. Within a pair, `chosen` is the completion with the higher score.

A group is dropped as `bad_verdict`, or as `tie` when all scores are equal: then every advantage is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from common.records import Dropped, Judged, PreferencePair, RolloutGroup, Verdict
from reward.ranking import check_verdict, pair_of

Estimator: TypeAlias = Callable[[Sequence[float]], tuple[float, ...]]
"""Scores of a group, not all equal -> an advantage of every completion."""


def advantage_pairs(
    group: RolloutGroup,
    verdict: Verdict,
    source: str,
    advantages_of: Estimator,
) -> Judged:
    """k / 2 pairs whose `scores` are advantages, or why there are none; k must be even."""
    dropped = check_verdict(group, verdict)
    if dropped is not None:
        return Judged(group.id, dropped=dropped)
    dropped = _no_advantage(group, verdict)
    if dropped is not None:
        return Judged(group.id, dropped=dropped, verdict=verdict)
    num_completions = len(group.completions)
    assert num_completions % 2 == 0, "the config refuses an odd number of completions"
    advantages = advantages_of(verdict.scores)
    pairs: list[PreferencePair] = []
    chosen: list[int] = []
    rejected: list[int] = []
    for first in range(0, num_completions, 2):
        # Of equal advantages either may be chosen: the pair's margin is 0 both ways.
        better = first
        worse = first + 1
        if advantages[worse] > advantages[better]:
            better, worse = worse, better
        pair = pair_of(
            group,
            id=f"{group.id}#{first // 2}",
            source=source,
            better=better,
            worse=worse,
            scores=(advantages[better], advantages[worse]),
        )
        pairs.append(pair)
        chosen.append(better)
        rejected.append(worse)
    return Judged(
        group.id,
        pairs=tuple(pairs),
        verdict=verdict,
        chosen=tuple(chosen),
        rejected=tuple(rejected),
    )


def _no_advantage(group: RolloutGroup, verdict: Verdict) -> Dropped | None:
    """The reason to drop a group whose scores are all equal, None for any other."""
    different_scores = set(verdict.scores)
    if len(different_scores) > 1:
        return None
    detail = f"all scores are {verdict.scores[0]:g}"
    return Dropped(group.id, "tie", detail)

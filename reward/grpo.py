"""GRPO (arXiv 2402.03300, section 4.1.2): every completion of a judged group with its advantage over the group.

    A_i = (r_i - mean) / std        over the k scores of the group; std with k - 1, as in TRL and verl
    A_i = r_i - mean                without `normalise` (Dr. GRPO, arXiv 2503.20783)

With the division a group of nearly equal scores weighs as much as one that the judge tells apart clearly. There is
none by zero: groups of equal scores are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import mean, stdev

from common.records import Judged, RolloutGroup, Verdict
from common.sources import GRPO
from reward.advantages import advantage_pairs


def group_relative(scores: Sequence[float], normalise: bool) -> tuple[float, ...]:
    """Each score minus the mean of all (two or more, not all equal), in standard deviations if wanted."""
    baseline = mean(scores)
    scale = stdev(scores) if normalise else 1.0
    return tuple((score - baseline) / scale for score in scores)


def grpo_pairs(group: RolloutGroup, verdict: Verdict, normalise: bool) -> Judged:
    """k / 2 pairs of completions with their advantages, or why there are none."""
    return advantage_pairs(
        group, verdict, GRPO, partial(group_relative, normalise=normalise)
    )

"""The grounding gate on the scorecard: would the policy still prefer the true answer if it did not see the picture?

Accuracy is the share of pairs ranked right (a tie is not right) under three image conditions: the pair's own picture, a
grey one of its size, and that of another pair. Pairs are ranked by

    implicit_reward   log(policy / start) of chosen - of rejected > 0 (DPO's β·log-ratio, arXiv 2305.18290; β > 0
                      changes no sign)
    logp_per_token    mean log-prob of chosen > of rejected. Used for the start policy, whose implicit rewards are all
                      0; whole log-probs would rank by length

The gain is what the true picture adds to the better of the two other conditions. A small gain says that the policy
decides by the words, not by sight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from common.data.image_conditions import CONDITIONS
from common.evaluation import ConditionLogps, count_reasons
from common.records import Dropped, SideLogps
from common.seeding import derive_seed
from reward.suites.bootstrap import Array, Columns, estimate, intervals, ratio

TRUE = CONDITIONS[0]
CHANCE = 0.5
RankedBy: TypeAlias = Literal["implicit_reward", "logp_per_token"]


class Grounding(BaseModel):
    """Accuracies are shares in 0-1 by image condition, all over the same pairs.

    `intervals` are 95 % bootstrap intervals by condition, and of "gain". `missing` says why nothing was measured,
    `warning` that the gain is too small.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ranked_by: RankedBy = "logp_per_token"
    num_pairs: int = 0
    accuracy: dict[str, float] = Field(default_factory=dict)
    gain: float | None = None
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    warning: str | None = None
    missing: str | None = None
    dropped: dict[str, int] = Field(
        default_factory=dict,
        description="pairs without log-probs in some view, by reason",
    )


def make_grounding(
    policy: ConditionLogps,
    start: ConditionLogps | None,
    least_gain: float,
    num_samples: int,
    dropped: Sequence[Dropped] = (),
) -> Grounding:
    """Measure one policy.

    Args:
        start: the start policy's log-probs of the same pairs; None says that this *is* the start policy.
        least_gain: a smaller gain is a warning.
        num_samples: bootstrap draws over pairs.
        dropped: answers that could not be scored.
    """
    reasons = count_reasons(dropped)
    ranked_by: RankedBy = "logp_per_token"
    pair_ids = _complete_pairs(policy)
    if start is not None:
        ranked_by = "implicit_reward"
        pair_ids &= _complete_pairs(start)
    # With one condition alone there is no gain to speak of.
    if not pair_ids or len(policy) < 2:
        return Grounding(
            ranked_by=ranked_by,
            missing="no pair could be scored in more than one view",
            dropped=reasons,
        )
    # Sorted, so that equal pairs meet equal draws.
    columns = _columns(policy, start, sorted(pair_ids))
    accuracy = estimate(columns, _statistic)
    gain = accuracy.pop("gain")
    warning = None
    if gain < least_gain:
        warning = _warning(accuracy, gain, least_gain)
    seed = derive_seed("scorecard", "grounding")
    return Grounding(
        ranked_by=ranked_by,
        num_pairs=len(pair_ids),
        accuracy=accuracy,
        gain=gain,
        intervals=intervals(columns, _statistic, num_samples, seed),
        warning=warning,
        dropped=reasons,
    )


def _complete_pairs(logps: ConditionLogps) -> set[str]:
    """Ids of the pairs that have log-probs under every condition."""
    if not logps:
        return set()
    # The gain compares conditions, so all of them must be over the same pairs.
    scored = map(set, logps.values())
    return set.intersection(*scored)


def _columns(
    policy: ConditionLogps,
    start: ConditionLogps | None,
    pair_ids: Sequence[str],
) -> Columns:
    """One row per pair: 1 where a condition ranks it right, and the number of pairs."""
    columns: dict[str, Array] = {}
    for condition, by_pair in policy.items():
        ranked_right: list[bool] = []
        for pair_id in pair_ids:
            start_logps = None
            if start is not None:
                start_logps = start[condition][pair_id]
            prefers = _prefers_chosen(by_pair[pair_id], start_logps)
            ranked_right.append(prefers)
        columns[condition] = np.asarray(ranked_right, float)
    columns["pairs"] = np.ones(len(pair_ids))
    return columns


def _prefers_chosen(policy: SideLogps, start: SideLogps | None) -> bool:
    # Strictly greater: a tie is no preference.
    if start is None:
        chosen, rejected = policy.both("per_token")
        return chosen > rejected
    chosen_reward = policy.chosen - start.chosen
    rejected_reward = policy.rejected - start.rejected
    return chosen_reward > rejected_reward


def _statistic(totals: Columns) -> dict[str, Array]:
    metrics: dict[str, Array] = {}
    blind: list[Array] = []
    num_pairs = totals["pairs"]
    for condition, total in totals.items():
        if condition == "pairs":
            continue
        accuracy = ratio(total, num_pairs)
        metrics[condition] = accuracy
        if condition != TRUE:
            blind.append(accuracy)
    # The better of the others is picked anew in every resampling.
    metrics["gain"] = metrics[TRUE] - np.max(blind, axis=0)
    return metrics


def _warning(accuracy: Mapping[str, float], gain: float, least_gain: float) -> str:
    seeing = accuracy[TRUE]
    if seeing <= CHANCE:
        return (
            f"true answers are not preferred even with the picture: accuracy {seeing:.3f}, chance is {CHANCE}; "
            "there is no preference whose grounding could be told"
        )
    blind = dict(accuracy)
    del blind[TRUE]
    best = max(blind, key=blind.__getitem__)
    return (
        f"preferences rest on words, not on sight: accuracy {seeing:.3f} with the picture, "
        f"{blind[best]:.3f} with a {best} one; the picture adds {gain:.3f}, expected at least "
        f"evaluation.grounding_gain = {least_gain:g}"
    )

"""The grounding gate on the scorecard: would the policy still prefer the true answer if it did not see the picture?

Accuracy is the share of pairs ranked right, a tie is not right, in three views: the pair's own picture, a grey one of
its size, and that of another pair. Ranked by

    implicit_reward   log(policy / start) of chosen - of rejected > 0 (DPO's β·log-ratio, arXiv 2305.18290; β > 0
                      changes no sign)
    logp_per_token    mean log-prob of chosen > of rejected, for the start policy: its implicit rewards are all 0, and
                      whole log-probs would rank by length

The gain is what the true picture adds to the better of the two others; a small one says that words decide, not sight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from common.records import Dropped, SideLogps
from common.seeding import derive_seed
from reward.bootstrap import Array, Columns, estimate, intervals, ratio

TRUE = "true"
CHANCE = 0.5
ViewLogps: TypeAlias = Mapping[str, Mapping[str, SideLogps]]
"""View name -> pair id -> log-probs; `true` is the pair's own picture."""


class Grounding(BaseModel):
    """Accuracies are shares in 0-1 by view, over the same pairs; `intervals` are 95 % bootstrap intervals by view, and
    of "gain". `missing` says why there is nothing, `warning` that the gain is too small."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ranked_by: Literal["implicit_reward", "logp_per_token"] = "logp_per_token"
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
    policy: ViewLogps,
    start: ViewLogps | None,
    least_gain: float,
    num_samples: int,
    dropped: Sequence[Dropped] = (),
) -> Grounding:
    """Measure one policy.

    Args:
        start: the start policy's log-probs of the same pairs; None says that this *is* the start policy.
        least_gain: a smaller gain is a warning.
        num_samples: bootstrap draws over pairs.
        dropped: views of pairs that could not be scored.
    """
    lost = dict(Counter(drop.reason for drop in dropped))
    ranked_by: Literal["implicit_reward", "logp_per_token"] = (
        "logp_per_token" if start is None else "implicit_reward"
    )
    ids = sorted(
        _in_every_view(policy)
        & (_in_every_view(start) if start is not None else _in_every_view(policy))
    )
    if not ids or len(policy) < 2:
        return Grounding(
            ranked_by=ranked_by,
            missing="no pair could be scored in more than one view",
            dropped=lost,
        )
    right = {
        view: np.asarray(
            [
                _prefers(found[id], start[view][id] if start is not None else None)
                for id in ids
            ],
            float,
        )
        for view, found in policy.items()
    }
    columns: Columns = {**right, "pairs": np.ones(len(ids))}
    values = estimate(columns, _statistic)
    gain = values.pop("gain")
    return Grounding(
        ranked_by=ranked_by,
        num_pairs=len(ids),
        accuracy=values,
        gain=gain,
        intervals=intervals(
            columns, _statistic, num_samples, derive_seed("scorecard", "grounding")
        ),
        warning=_warning(values, gain, least_gain) if gain < least_gain else None,
        dropped=lost,
    )


def _in_every_view(logps: ViewLogps) -> set[str]:
    return (
        set.intersection(*(set(found) for found in logps.values())) if logps else set()
    )


def _prefers(policy: SideLogps, start: SideLogps | None) -> bool:
    if start is None:
        chosen, rejected = policy.both("per_token")
        return chosen > rejected
    return policy.chosen - start.chosen > policy.rejected - start.rejected


def _statistic(totals: Columns) -> dict[str, Array]:
    found = {
        view: ratio(total, totals["pairs"])
        for view, total in totals.items()
        if view != "pairs"
    }
    blind = np.max([value for view, value in found.items() if view != TRUE], axis=0)
    return {**found, "gain": found[TRUE] - blind}


def _warning(accuracy: Mapping[str, float], gain: float, least_gain: float) -> str:
    view = max(
        (view for view in accuracy if view != TRUE), key=lambda name: accuracy[name]
    )
    if accuracy[TRUE] <= CHANCE:
        return (
            f"true answers are not preferred even with the picture: accuracy {accuracy[TRUE]:.3f}, chance is {CHANCE}; "
            "there is no preference whose grounding could be told"
        )
    return (
        f"preferences rest on words, not on sight: accuracy {accuracy[TRUE]:.3f} with the picture, "
        f"{accuracy[view]:.3f} with a {view} one; the picture adds {gain:.3f}, expected at least "
        f"evaluation.grounding_gain = {least_gain:g}"
    )

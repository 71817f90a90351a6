"""How a BDHS run went, from one short note per prompt. The notes are on disk, so a resumed run counts all prompts.

For comparison, the paper on POVID-5k: more than 74 % of the examples accepted after one attempt, 90 % after four.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors.bdhs.sampling import Outcome
from common.records import Dropped

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)

DETAIL_CHARS = 200


def note_of(outcome: Outcome) -> dict[str, Any]:
    """The part of an outcome that is counted, as JSON."""
    reason = None
    detail = None
    if isinstance(outcome.result, Dropped):
        reason = outcome.result.reason
        detail = outcome.result.detail[:DETAIL_CHARS]
    return {
        "id": outcome.prompt_id,
        "dropped": reason,
        "detail": detail,
        "attempts": outcome.attempts,
        "similarity": outcome.similarity,
        "num_visible": outcome.num_visible,
        "num_image_tokens": outcome.num_image_tokens,
    }


def summarise(
    notes: Sequence[Mapping[str, Any]],
    max_attempts: int,
) -> dict[str, Any]:
    """Counts over all prompts.

    Returns:
        `accepted_per_attempt`: pairs, keyed "1" … "max_attempts".
        `another_attempt_frac`: share of the prompts tried that needed more than one attempt, the signal for tuning rho.
        `similarity`: quantiles over the pairs, keyed by share.
        `visible_frac`: visible image tokens over all, of the attempts that decided.
        Also `num_prompts`, `num_pairs`, `dropped` by reason and `mean_visible_tokens`.
    """
    pairs_at: Counter[int] = Counter()
    dropped: Counter[str] = Counter()
    similarities = []
    num_tried = num_repeated = num_visible = num_tokens = 0
    for note in notes:
        if note["dropped"] is None:
            pairs_at[note["attempts"]] += 1
            similarities.append(note["similarity"])
        else:
            dropped[note["dropped"]] += 1
        # Refused prompts have no attempt.
        if note["attempts"]:
            num_tried += 1
            num_repeated += note["attempts"] > 1
            num_visible += note["num_visible"]
            num_tokens += note["num_image_tokens"]

    # Attempts that accepted nothing are listed, too.
    accepted = {}
    for number in range(1, max_attempts + 1):
        accepted[str(number)] = pairs_at[number]
    return {
        "num_prompts": len(notes),
        "num_pairs": pairs_at.total(),
        "accepted_per_attempt": accepted,
        "another_attempt_frac": num_repeated / num_tried if num_tried else 0.0,
        "dropped": dict(sorted(dropped.items())),
        "similarity": _quantiles(similarities),
        "mean_visible_tokens": num_visible / num_tried if num_tried else 0.0,
        "visible_frac": num_visible / num_tokens if num_tokens else 0.0,
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    quantiles = {}
    for share in QUANTILES:
        value = np.quantile(values, share)
        quantiles[str(share)] = float(value)
    return quantiles

"""How a BDHS run went, from one short note per prompt; the notes outlive the process, so a resumed run counts all.

For comparison, the paper on POVID-5k: more than 74 % of the examples accepted after one attempt, 90 % after four.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors.bdhs import Outcome
from common.records import Dropped

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def note_of(outcome: Outcome) -> dict[str, Any]:
    """The part of an outcome that is counted, as JSON."""
    result = outcome.result
    return {
        "id": outcome.prompt_id,
        "dropped": result.reason if isinstance(result, Dropped) else None,
        "attempts": outcome.attempts,
        "similarity": outcome.similarity,
        "num_visible": outcome.num_visible,
        "num_image_tokens": outcome.num_image_tokens,
    }


def summarise(notes: Sequence[Mapping[str, Any]], max_attempts: int) -> dict[str, Any]:
    """Counts over all prompts.

    `accepted_per_attempt` is keyed "1" … "max_attempts"; `another_attempt_frac` is the share of the prompts tried that
    needed more than one (the signal for tuning rho); `similarity` holds quantiles over the pairs, keyed by share;
    `visible_frac` is visible image tokens over all, of the attempts that decided.
    """
    pairs = [note for note in notes if note["dropped"] is None]
    tried = [note for note in notes if note["attempts"]]
    attempts = Counter(note["attempts"] for note in pairs)
    values = sorted(note["similarity"] for note in pairs)
    num_tokens = sum(note["num_image_tokens"] for note in tried)
    num_visible = sum(note["num_visible"] for note in tried)
    return {
        "num_prompts": len(notes),
        "num_pairs": len(pairs),
        "accepted_per_attempt": {
            str(n): attempts[n] for n in range(1, max_attempts + 1)
        },
        "another_attempt_frac": sum(note["attempts"] > 1 for note in tried) / len(tried)
        if tried
        else 0.0,
        "dropped": dict(
            sorted(
                Counter(note["dropped"] for note in notes if note["dropped"]).items()
            )
        ),
        "similarity": {str(q): quantile(values, q) for q in QUANTILES}
        if values
        else {},
        "mean_visible_tokens": num_visible / len(tried) if tried else 0.0,
        "visible_frac": num_visible / num_tokens if num_tokens else 0.0,
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of non-empty `values` lie, linearly interpolated."""
    return float(np.quantile(values, share))

"""What an offline pair is likely to teach (ours; `mixture.offline_draw = "by_value"`).

    value = σ(-margin) · (1 - 2^-age) / (1 + uses)

margin  the pair's implicit reward margin when it was last trained on, as the learner said; 0, as under the start
        policy, for one that was not. σ(-margin) is what DPO weighs the pair's gradient with (arXiv 2305.18290,
        section 4): a pair that the policy tells apart already teaches little.
age     offline pairs that were drawn since the pair's last batch, over the pairs of the set. One of the batch before
        has the age 0, and so the value 0; after as many pairs as an epoch has, half of its value is back.
uses    batches that it was in.

A pair that was never drawn has the value 1/2, and no other has more. Of N pairs the next one is pair i with the
probability

    (1 - FLOOR) · value_i / Σ value + FLOOR / N

so that none is given up.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

FLOOR = 0.1
"""Share of the draw in which all pairs are alike."""

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"


def values(
    margins: Floats,
    ages: Floats,
    uses: Floats,
) -> Floats:
    """The values of pairs, [pairs] each; the age of a pair that was never drawn is infinite."""
    # σ(-m) = 1 / (1 + e^m), which would overflow for a large m.
    gradients = np.exp(-np.logaddexp(0.0, margins))
    rested = 1 - np.exp2(-ages)
    result: Floats = gradients * rested / (1 + uses)
    return result


def probabilities(values: Floats) -> Floats:
    """How likely each pair is the next one, [pairs]; all alike where no pair has a value."""
    total = values.sum()
    even = np.full(len(values), 1 / len(values))
    if total == 0:
        return even
    result: Floats = (1 - FLOOR) * values / total + FLOOR * even
    return result

"""What a set's statistics say of its outcomes, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from actors.bdhs.sampling import (
    Outcome,
)
from actors.bdhs.stats import note_of, summarise
from common.records import (
    Dropped,
    PreferencePair,
)
from tests.actors.bdhs.scripted_policy import (
    make_prompt,
)


def test_statistics_by_hand() -> None:
    """Two pairs at attempt 1, one at 2, one refused, one dropped at 2: of four tried, two needed more than one."""
    pair = PreferencePair("bdhs/p", make_prompt(), None, None, "bdhs")  # type: ignore[arg-type]
    made = [
        Outcome(pair, "a", 1, 0.2, 1, 10),
        Outcome(pair, "b", 1, 0.4, 2, 10),
        Outcome(pair, "c", 2, 0.9, 3, 10),
        Outcome(Dropped("d", "identical"), "d", 2, 1.0, 2, 10),
        Outcome(Dropped("e", "no_reference"), "e"),
    ]
    stats = summarise([note_of(outcome) for outcome in made], max_attempts=3)
    assert stats["accepted_per_attempt"] == {"1": 2, "2": 1, "3": 0}
    assert stats["dropped"] == {"identical": 1, "no_reference": 1}
    assert stats["num_prompts"] == 5
    assert stats["num_pairs"] == 3
    assert stats["another_attempt_frac"] == 0.5
    assert stats["mean_visible_tokens"] == 2.0
    assert stats["visible_frac"] == 0.2
    assert stats["similarity"]["0.5"] == 0.4
    assert stats["similarity"]["0.75"] == pytest.approx(0.65)
    assert summarise([], 2)["similarity"] == {}


def _note(similarity: float) -> dict[str, Any]:
    return {
        "dropped": None,
        "attempts": 1,
        "similarity": similarity,
        "num_visible": 1,
        "num_image_tokens": 1,
    }


def test_quantile_interpolates() -> None:
    """Of 1, 2 and 4, a quarter of the way is half way between the first two."""
    notes = [_note(4.0), _note(1.0), _note(2.0)]
    quantiles = summarise(notes, 1)["similarity"]
    assert quantiles["0.0"] == 1.0
    assert quantiles["0.25"] == 1.5
    assert quantiles["0.5"] == 2.0
    assert quantiles["1.0"] == 4.0

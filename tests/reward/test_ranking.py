"""Pairs from groups: who is chosen, which version counts, and why there may be no pair."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.records import Judged, PreferencePair, Verdict
from reward.ranking import best_against_worst
from tests.reward.builders import caption_prompt, completion, group

PROMPT = caption_prompt()


def pair_of(scores: tuple[float, ...], *texts: str, id: str = "g") -> PreferencePair:
    judged = best_against_worst(group(PROMPT, *texts, id=id), Verdict(scores), 0.0)
    (pair,) = judged.pairs
    return pair


def reason(scores: tuple[float, ...], *texts: str, margin: float = 1e-6) -> str:
    judged = best_against_worst(group(PROMPT, *texts), Verdict(scores), margin)
    assert judged.dropped is not None
    return judged.dropped.reason


def test_best_against_worst_with_everything_the_learner_needs() -> None:
    rolled = group(PROMPT, "a", "b", "c", id="epoch-2/p", versions=(7, 5, 6))
    judged = best_against_worst(rolled, Verdict((-1.0, -0.5, -2.0)), 1e-6)
    (pair,) = judged.pairs
    assert judged.chosen == (1,)
    assert judged.rejected == (2,)
    assert pair.id == "epoch-2/p"
    assert pair.source == "online"
    assert pair.scores == (-0.5, -2.0)
    assert pair.chosen.text == "b"
    assert pair.chosen.token_ids == (98,)
    assert pair.rejected.text == "c"
    assert pair.rejected.token_ids == (99,)
    assert pair.prompt_token_ids == (1, 2, 3)
    # The older of 5 and 6: the version 7 of "a" has no part in it.
    assert pair.weight_version == 5


def test_the_version_is_that_of_the_older_first_token() -> None:
    """Versions 4-9 and 5-5: the pair is as old as its oldest token, 4."""
    old = replace(completion("a", 4), max_weight_version=9)
    rolled = replace(group(PROMPT), completions=(old, completion("b", 5)))
    (pair,) = best_against_worst(rolled, Verdict((1.0, 0.0)), 0.0).pairs
    assert pair.weight_version == 4


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((1.0, 1.0), "tie"),
        ((0.0, 0.4), "tie"),
        ((math.nan, 1.0), "bad_verdict"),
        ((0.0, math.inf), "bad_verdict"),
        ((0.0,), "bad_verdict"),
        ((0.0, 1.0, 2.0), "bad_verdict"),
        ((), "bad_verdict"),
    ],
)
def test_reasons(scores: tuple[float, ...], expected: str) -> None:
    assert reason(scores, "a", "b", margin=0.5) == expected


def test_a_margin_of_exactly_the_minimum_makes_a_pair_and_equal_scores_never_do() -> (
    None
):
    verdict = Verdict((0.0, 0.5))
    assert best_against_worst(group(PROMPT, "a", "b"), verdict, 0.5).pairs
    assert reason((1.0, 1.0), "a", "b", margin=0.0) == "tie"


def test_one_text_makes_no_pair_whatever_the_scores() -> None:
    """A noisy judge scores a text twice; best and worst saying the same is caught in larger groups too."""
    assert reason((0.0, 1.0), "a", " a\n") == "identical"
    assert reason((0.0, 1.0, 0.5), "a", "a", "b") == "identical"


def test_a_written_out_end_mark_makes_no_pair() -> None:
    """In letters: tokens of that name never reach a text."""
    assert reason((1.0, 0.0), "A dog.", "A dog.</s>") == "identical"
    assert (
        reason((1.0, 0.0, 0.5), "A dog.", "A dog.<|im_end|>", "A cat.") == "identical"
    )


def test_garbage_instead_of_a_verdict_is_dropped() -> None:
    for garbage in (None, Verdict(("good", "bad")), Verdict((None, 1.0))):  # type: ignore[arg-type]
        judged = best_against_worst(group(PROMPT, "a", "b"), garbage, 0.0)
        assert judged.dropped.reason == "bad_verdict"
        assert judged.verdict is None


@pytest.mark.parametrize("share", [math.nan, 1.5, -0.1, "first"])
def test_a_share_of_places_that_is_none_is_dropped(share: Any) -> None:
    verdict = Verdict((0.0, 1.0), first_wins=share)
    judged = best_against_worst(group(PROMPT, "a", "b"), verdict, 0.0)
    assert judged.dropped is not None
    assert judged.dropped.reason == "bad_verdict"
    assert "first_wins None or from 0 to 1" in judged.dropped.detail


def test_equals_are_drawn_without_length_bias() -> None:
    """Short and long tie for best in 400 groups: each is drawn 200 ± 60 times (6 σ, σ = 10)."""
    texts = ("x", "a much longer answer", "bad")
    drawn: Counter[str] = Counter()
    for index in range(400):
        # The draw is a hash of the group's id.
        pair = pair_of((1.0, 1.0, 0.0), *texts, id=f"g{index}")
        drawn[pair.chosen.text] += 1
    assert set(drawn) == {"x", "a much longer answer"}
    assert abs(drawn["x"] - 200) < 60


@given(st.lists(st.integers(-3, 0), min_size=2, max_size=8), st.randoms())
def test_the_order_of_completions_does_not_matter(
    scores: list[int], rng: random.Random
) -> None:
    scored = [(f"text {index}", float(score)) for index, score in enumerate(scores)]

    def ranked(completions: list[tuple[str, float]]) -> Judged:
        texts, scores = zip(*completions, strict=True)
        return best_against_worst(group(PROMPT, *texts), Verdict(scores), 0.0)

    in_order = ranked(scored)
    in_disorder = ranked(rng.sample(scored, len(scored)))
    assert in_order.pairs == in_disorder.pairs
    assert in_order.dropped == in_disorder.dropped


@given(
    st.lists(st.integers(-3, 3), min_size=2, max_size=8).filter(
        lambda scores: len(set(scores)) > 1
    )
)
def test_negated_scores_swap_chosen_and_rejected(scores: list[int]) -> None:
    texts = [f"text {index}" for index in range(len(scores))]
    negated = [-score for score in scores]
    pair = pair_of(tuple(map(float, scores)), *texts)
    swapped = pair_of(tuple(map(float, negated)), *texts)
    assert pair.chosen == swapped.rejected
    assert pair.rejected == swapped.chosen
    assert pair.scores == (max(scores), min(scores))

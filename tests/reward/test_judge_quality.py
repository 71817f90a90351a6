"""What a judge is worth, by hand: agreement, position and length bias, what it finds blind."""

from __future__ import annotations

import pytest

from common.records import Dropped, ImageRef, PreferencePair, Prompt, Response, Verdict
from reward.judge_quality import MEANINGS, BothOrders, measure_judge

RIGHT = BothOrders(Verdict((1, 0)), Verdict((0, 1)))
WRONG = BothOrders(Verdict((0, 1)), Verdict((1, 0)))
ALWAYS_FIRST = BothOrders(Verdict((1, 0)), Verdict((1, 0)))
TIED = BothOrders(Verdict((2, 2)), Verdict((3, 3)))
HALF_RIGHT = BothOrders(Verdict((1, 0)), Verdict((1, 1)))


def pair(
    id: str, chosen: str = "a b c", rejected: str = "a b", image: str = ""
) -> PreferencePair:
    images = (ImageRef(image or id, "/x"),)
    prompt = Prompt(id, (), images)
    return PreferencePair(id, prompt, Response(chosen), Response(rejected), "labelled")


@pytest.mark.parametrize(
    ("verdicts", "agreement", "contradicts"),
    [
        (RIGHT, 1.0, False),
        (WRONG, 0.0, False),
        (ALWAYS_FIRST, 0.5, True),
        (TIED, 0.5, False),
        (HALF_RIGHT, 0.5, False),
    ],
)
def test_one_pair(verdicts: BothOrders, agreement: float, contradicts: bool) -> None:
    assert verdicts.agreement == agreement
    assert verdicts.contradicts == contradicts


def test_a_set_by_hand() -> None:
    """Chosen is longer in a, b and c, shorter in d.

    Agreement (1 + 0 + ½ + ½) / 4. First wins: a 1 of 2, b 1 of 2, c 2 of 2, d 1 of 2 (two ties): 5 of 8.
    The longer side wins twice in a, never in b, once in c, once (two ties) in d: 4 of 8.
    """
    pairs = [pair("a"), pair("b"), pair("c"), pair("d", "a", "a b")]
    seen = {"a": RIGHT, "b": WRONG, "c": ALWAYS_FIRST, "d": TIED}
    blind = {"a": WRONG, "c": TIED}
    quality = measure_judge("j", pairs, seen, blind, [Dropped("e", "judge_failed")], 50)
    assert quality.num_pairs == 4
    assert quality.dropped == {"judge_failed": 1}
    assert quality.metrics == {
        "agreement": 0.5,
        "first_wins": 5 / 8,
        "contradictions": 0.25,
        "ties": 0.25,
        "longer_wins": 0.5,
        "longer_is_chosen": 0.75,
        # Of a and c alone: blind (0 + ½) / 2, seen (1 + ½) / 2.
        "blind_agreement": 0.25,
        "gain": 0.5,
    }
    assert quality.metrics.keys() == MEANINGS.keys() == quality.intervals.keys()


def test_pairs_of_one_picture_are_redrawn_together() -> None:
    """Two right and two wrong pairs of two pictures: only whole pictures are redrawn, so the spread is that of two."""
    pairs = [pair(str(i), image=str(i // 50)) for i in range(100)]
    seen = {str(i): RIGHT if i < 50 else WRONG for i in range(100)}
    quality = measure_judge("j", pairs, seen, {}, [], 400)
    assert quality.intervals["agreement"] == (0.0, 1.0)


def test_what_was_not_asked_is_absent() -> None:
    quality = measure_judge("j", [pair("a", "x", "y")], {"a": RIGHT}, {}, [], 10)
    assert "gain" not in quality.metrics
    assert "blind_agreement" not in quality.metrics
    assert "longer_wins" not in quality.metrics


def test_without_a_verdict_nothing_is_measured() -> None:
    quality = measure_judge("j", [pair("a")], {}, {}, [Dropped("a", "tie")], 10)
    assert (quality.num_pairs, quality.metrics) == (0, {})

"""What a group is worth and what a prompt's groups say of its next one, by hand."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from cluster.run.outcome import GroupOutcome
from cluster.sampling.worth import Chances, Records, worth
from common.records import (
    Dropped,
    Judged,
    PreferencePair,
    Prompt,
    Response,
    Verdict,
)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((0, 0, 0, 0), 0),
        # Of six pairs of completions three, four, five and all six differ.
        ((0, 1, 0, 0), 1 / 2),
        ((0, 1, 1, 0), 2 / 3),
        ((0, 1, 2, 0), 5 / 6),
        ((0, 1, 2, 3), 1),
        ((0.5, 0.5), 0),
        ((0.5, 0.25), 1),
    ],
)
def test_worth_by_hand(scores: tuple[float, ...], expected: float) -> None:
    assert worth(scores) == pytest.approx(expected)


def test_the_worth_of_a_group_is_the_chance_that_two_completions_differ() -> None:
    """Unbiased: with scores 0 and 1 of probability 0.8 and 0.2 two differ with 2 · 0.8 · 0.2 = 0.32."""
    draws = np.random.default_rng(0)
    groups = (draws.random((20_000, 4)) < 0.2).astype(float)
    mean = np.mean([worth(tuple(scores)) for scores in groups])
    # A standard error is 0.002.
    assert mean == pytest.approx(0.32, abs=0.008)


def test_the_worth_of_an_outcome() -> None:
    for reason in ("identical", "tie", "cut_off"):
        assert GroupOutcome("g", dropped=Dropped("g", reason)).worth == 0
    # A judge that is down for a while must not make the prompts of that while look solved.
    for reason in ("judge_failed", "bad_verdict"):
        assert GroupOutcome("g", dropped=Dropped("g", reason)).worth is None
    prompt = Prompt("p", (), ())
    pair = PreferencePair("g", prompt, Response("yes"), Response("no"), "online")
    verdict = Verdict((1.0, 0.0, 0.0))
    judged = Judged("g", (pair,), None, verdict, (0,), (1,))
    outcome = GroupOutcome("g", (pair,), judged=judged)
    assert outcome.worth == pytest.approx(2 / 3)
    # Online BDHS asks no judge.
    assert GroupOutcome("g", (pair,)).worth is None


def test_chances_by_hand() -> None:
    """Half-life of two rounds; round 0 gave 0.5 for prompt 3 and nothing for prompt 8, prompt 9 was never asked.

    At round 0 the mean of first groups is (0.5 + 0.5 + 0) / (1 + 2) = 1/3: one guess of 1/2, and two groups.
    """
    records = Records()
    chances = Chances(array("q", [3, 8, 9]), 2.0, records)
    assert chances.at(0) == pytest.approx([0.5] * 3)
    chances.note(0, {3: 0.5, 8: 0.0})
    prior = 0.5 / 3
    expected = [(0.5 + prior) / 1.5, prior / 1.5, 1 / 3]
    assert chances.at(0) == pytest.approx(expected)
    # Two rounds later both groups weigh half.
    expected = [(0.25 + prior) / 1.0, prior / 1.0, 1 / 3]
    assert chances.at(2) == pytest.approx(expected)
    # Another group of prompt 3 gives 1: no first group. Its record is (0.5/2 + 1) / (1/2 + 1).
    chances.note(2, {3: 1.0})
    assert records.by_prompt[3] == pytest.approx((1.25, 1.5, 2))
    assert chances.at(2)[0] == pytest.approx((1.25 + prior) / 2.0)
    # In the end nobody knows anything.
    assert chances.at(200) == pytest.approx([1 / 3] * 3)


def test_records_of_prompts_that_left_the_set_are_kept() -> None:
    records = Records()
    chances = Chances(array("q", [3, 8]), 2.0, records)
    chances.note(0, {3: 1.0, 8: 0.0})
    without = Chances(array("q", [8, 9]), 2.0, records)
    assert len(without.at(1)) == 2
    again = Chances(array("q", [3, 8]), 2.0, records)
    assert list(again.at(1)) == list(chances.at(1))

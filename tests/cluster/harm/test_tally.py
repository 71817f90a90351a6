"""What groups say: figures by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.harm.tally import GroupTally
from cluster.run.outcome import GroupOutcome
from common.records import (
    Dropped,
    Judged,
    PreferencePair,
    Response,
    Verdict,
)
from common.sources import RLOO
from tests.cluster.harm.groups import PROMPT, group, judged


def metrics_of(*outcomes: GroupOutcome) -> dict[str, float]:
    tally = GroupTally()
    for outcome in outcomes:
        tally.add(outcome)
    return tally.take()


def test_lengths_and_cut_off_answers() -> None:
    """Tokens 1, 3, 2 and 2; the last two of four were cut off."""
    metrics = metrics_of(
        judged(group("a", "abc"), (0, 1)),
        judged(group("ab", "cd", finish="length"), (0, 1)),
    )
    assert metrics["completions/mean_length"] == 2
    assert metrics["completions/cut_off_frac"] == 0.5


def test_lengths_prompt_by_prompt() -> None:
    """Prompt p has 2 tokens at first, then 3 and 4; prompt q is longer and comes once: hard ones are no growth."""
    tally = GroupTally(by_prompt=True)
    tally.add(judged(group("ab", "cd"), (0, 1)))
    assert "completions/length_ratio" not in tally.take()
    other = replace(group("a" * 50, "b" * 50), prompt=replace(PROMPT, id="q"))
    for rollout in (group("abc", "def"), other, group("abcd", "efgh")):
        tally.add(judged(rollout, (0, 1)))
    assert tally.take()["completions/length_ratio"] == (1.5 + 2) / 2
    assert "completions/length_ratio" not in metrics_of(
        judged(group("ab", "cd"), (0, 1)), judged(group("ab", "cd"), (0, 1))
    )


@pytest.mark.parametrize(
    ("texts", "distinct_texts", "distinct_bigrams"),
    [
        (("a b", "a b", "a b", "a b"), 0, 0),
        # One of three more; bigrams ^a ab b$ and ^c cd d$: 6 of 3 in the mean.
        (("a b", "a b", "a b", "c d"), 1 / 3, 1 / 3),
        (("yes", "no"), 1, 1),
        # Only the last word differs: ^a ab bc c$ and ^a ab bd d$, together 6 of 4 in the mean.
        (("a b c", "a b d"), 1, 0.5),
        # An empty answer is one that ends at once.
        (("", "a"), 1, 1),
    ],
)
def test_diversity(
    texts: tuple[str, ...], distinct_texts: float, distinct_bigrams: float
) -> None:
    scores = range(len(texts))
    metrics = metrics_of(judged(group(*texts), list(scores)))
    assert metrics["completions/distinct_texts"] == pytest.approx(distinct_texts)
    assert metrics["completions/distinct_bigrams"] == pytest.approx(distinct_bigrams)


def test_who_wins() -> None:
    """The longer one in one group of two; equal lengths, ties and equal texts decide nothing."""
    metrics = metrics_of(
        judged(group("ab", "c"), (1, 0), 0.75),
        judged(group("ab", "c"), (0, 1), 0.25),
        judged(group("ab", "cd"), (1, 0)),
        judged(group("ab", "c"), (1, 1)),
        judged(group("ab", "ab"), (0, 1)),
    )
    assert (metrics["judge/longer_wins"], metrics["judge/num_longer"]) == (0.5, 2)
    assert (metrics["judge/first_wins"], metrics["judge/num_ordered"]) == (0.5, 2)


def test_a_group_of_rloo_counts_once_and_by_answers_that_differ() -> None:
    rollout = group("abc", "ab", "a", "abcd")
    pairs = []
    for number in range(2):
        response = Response("x")
        pair = PreferencePair(f"g/{number}", PROMPT, response, response, RLOO)
        pairs.append(pair)
    verdict = Verdict((1.0, 1.0, 0.0, 2.0))
    result = Judged("g", tuple(pairs), verdict=verdict, chosen=(0, 3), rejected=(1, 2))
    metrics = metrics_of(GroupOutcome.of_judged(rollout, result))
    assert (metrics["judge/longer_wins"], metrics["judge/num_longer"]) == (1, 1)


def test_scores_of_the_judge_and_of_every_member() -> None:
    """Means over completions; spreads are means over groups."""
    members = (("rules", (1.0, 0.0)), ("vlm", (0.5, 0.7)))
    vetoed = Dropped("g", "vetoed")
    first = Judged("g", (), vetoed, Verdict((1.5, 0.7), members=members))
    second = Judged("g", (), vetoed, Verdict((0.0, 0.4)))
    metrics = metrics_of(
        GroupOutcome.of_judged(group("a", "b"), first),
        GroupOutcome.of_judged(group("a", "b"), second),
    )
    expected = {
        "judge/score": 0.65,
        "judge/spread": 0.6,
        "judge/score/rules": 0.5,
        "judge/spread/rules": 1.0,
        "judge/score/vlm": 0.6,
        "judge/spread/vlm": 0.2,
    }
    of_scores = {name: metrics[name] for name in expected}
    assert of_scores == pytest.approx(expected)


def test_what_was_not_sampled_or_not_judged_says_nothing() -> None:
    refused = GroupOutcome("g", dropped=Dropped("g", "prompt_too_long"))
    assert metrics_of(refused) == {}
    failed = Judged("g", dropped=Dropped("g", "judge_failed"))
    metrics = metrics_of(GroupOutcome.of_judged(group("a", "b"), failed))
    assert "completions/mean_length" in metrics
    assert not any(name.startswith("judge/") for name in metrics)


def test_a_step_is_what_came_since_the_step_before() -> None:
    tally = GroupTally()
    tally.add(judged(group("a", "b"), (0, 1)))
    assert tally.take()
    assert tally.take() == {}

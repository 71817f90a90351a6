"""The scorecard: what it measures, what it counts as lost, and that it travels as JSON."""

from __future__ import annotations

import pytest

from common.records import Dropped, Verdict
from reward.scorecard import Answers, Scorecard, make_scorecard, win_of
from tests.reward.builders import (
    SCENE,
    TRUE,
    caption_prompt,
    group,
    prompt,
    question_prompt,
)

INVENTED = "There is a red circle. There is a green ring."


def answers() -> Answers:
    captions = (
        group(caption_prompt(SCENE, "a"), TRUE),
        group(caption_prompt(SCENE, "b"), INVENTED),
    )
    asked = [
        ("yes", "random", "Yes."),
        ("no", "random", "Yes."),
        ("yes", "popular", "Yes."),
        ("no", "popular", "No."),
    ]
    questions = tuple(
        group(question_prompt(true, split, "a"), said) for true, split, said in asked
    )
    return Answers(captions, questions, (Dropped("c", "prompt_too_long"),))


def test_by_hand() -> None:
    """Captions: 1 of 2 hallucinates; 1 of 4 mentions; 3 of 4 objects found; (17 + 10) / 2 = 13.5 words.

    random: tp 1, fp 1: accuracy ½, f1 2/3, yes 1. popular: tp 1, tn 1: accuracy 1, f1 1, yes ½.
    Means over the two splits asked about: ¾, 5/6, ¾. Wins: 1 and ½ of 2 = ¾.
    """
    card = make_scorecard(
        answers(), {"a": 1.0, "b": 0.5}, 200, [Dropped("g", "judge_failed")]
    )
    assert (card.chair_s, card.chair_i, card.recall, card.mean_length) == (
        0.5,
        0.25,
        0.75,
        13.5,
    )
    assert (card.pope_accuracy, card.pope_f1, card.pope_yes_ratio) == pytest.approx(
        (0.75, 5 / 6, 0.75)
    )
    assert set(card.pope) == {"random", "popular"}
    assert card.pope["random"]["precision"] == 0.5
    assert card.win_rate == 0.75
    assert card.selection == pytest.approx(0.75)
    assert (
        card.num_captions,
        card.num_questions,
        card.num_compared,
        card.num_truncated,
    ) == (2, 4, 2, 0)
    assert card.dropped == {"prompt_too_long": 1, "judge_failed": 1}
    assert {
        "chair_s",
        "win_rate",
        "pope_f1",
        "pope/popular/recall",
        "selection",
    } <= set(card.intervals)
    assert all(low <= high for low, high in card.intervals.values())
    assert card.intervals["chair_s"] == (0.0, 1.0)


def test_the_start_policy_draws_with_itself() -> None:
    card = make_scorecard(answers(), None, 10)
    assert (card.win_rate, card.intervals["win_rate"], card.num_compared) == (
        0.5,
        (0.5, 0.5),
        0,
    )


def test_no_comparison_that_worked_is_no_win_rate() -> None:
    assert make_scorecard(answers(), {}, 10).win_rate is None


def test_nothing_to_measure_is_none_and_not_zero() -> None:
    card = make_scorecard(Answers(captions=(group(prompt(), "A dog."),)), {}, 10)
    assert (
        card.chair_i,
        card.recall,
        card.pope_accuracy,
        card.win_rate,
        card.selection,
    ) == (None,) * 4 + (0.0,)
    assert (card.pope, card.intervals, card.dropped) == ({}, {}, {"no_truth": 1})


def test_equal_answers_give_equal_cards_and_json_brings_them_back() -> None:
    card = make_scorecard(answers(), None, 50)
    assert card == make_scorecard(answers(), None, 50)
    assert Scorecard.model_validate_json(card.model_dump_json()) == card


@pytest.mark.parametrize(
    ("scores", "win"), [((1.0, 0.0), 1.0), ((0.0, 1.0), 0.0), ((-1.0, -1.0), 0.5)]
)
def test_a_win_is_a_better_score_and_a_tie_is_half(
    scores: tuple[float, float], win: float
) -> None:
    assert win_of(Verdict(scores)) == win

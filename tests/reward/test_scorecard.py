"""The shapes suite: what it measures, what it counts as lost, and that scorecards travel as JSON."""

from __future__ import annotations

import pytest

from common import config
from common.evaluation import Comparison, Measurement, SuiteAnswers
from common.records import Verdict
from reward.shapes_world import ShapesSuite
from reward.suites.scorecard import Scorecard, SuiteCard
from reward.suites.wins import win_of
from tests.reward.builders import (
    SCENE,
    TRUE,
    caption_prompt,
    group,
    prompt,
    question_prompt,
)

INVENTED = "There is a red circle. There is a green ring."


def answers() -> SuiteAnswers:
    captions = (
        group(caption_prompt(SCENE, "a"), TRUE),
        group(caption_prompt(SCENE, "b"), INVENTED),
    )
    questions = (
        group(question_prompt("yes", "random", "a"), "Yes."),
        group(question_prompt("no", "random", "a"), "Yes."),
        group(question_prompt("yes", "popular", "a"), "Yes."),
        group(question_prompt("no", "popular", "a"), "No."),
    )
    return SuiteAnswers({"captions": captions, "questions": questions})


def measure(
    answers: SuiteAnswers, wins: dict[str, float] | None, num_samples: int = 10
) -> Measurement:
    comparison = None if wins is None else compared(wins)
    return ShapesSuite(config.ShapesSuite()).measure(answers, comparison, num_samples)


def compared(wins: dict[str, float]) -> Comparison:
    """Verdicts that come to these wins."""
    verdicts = {id: Verdict((win, 1 - win)) for id, win in wins.items()}
    return Comparison(SuiteAnswers(), verdicts)


def values(measurement: Measurement) -> dict[str, float]:
    return {name: metric.value for name, metric in measurement.metrics.items()}


def test_by_hand() -> None:
    """Captions: 1 of 2 hallucinates; 1 of 4 mentions; 3 of 4 objects named; (17 + 10) / 2 = 13.5 words.

    random: tp 1, fp 1: accuracy ½, f1 2/3, yes 1. popular: tp 1, tn 1: accuracy 1, f1 1, yes ½.
    Means over the two splits asked about: ¾, 5/6, ¾. Wins: 1 and ½ of 2 = ¾.
    """
    measurement = measure(answers(), {"a": 1.0, "b": 0.5}, num_samples=200)
    value = values(measurement)
    assert value["chair_s"] == 0.5
    assert value["chair_i"] == 0.25
    assert value["recall"] == 0.75
    assert value["mean_length"] == 13.5
    assert value["pope_accuracy"] == pytest.approx(0.75)
    assert value["pope_f1"] == pytest.approx(5 / 6)
    assert value["pope_yes_ratio"] == pytest.approx(0.75)
    splits = {name.split("/")[1] for name in value if name.startswith("pope/")}
    assert splits == {"random", "popular"}
    assert value["pope/random/precision"] == 0.5
    assert value["win_rate"] == 0.75
    assert value["selection"] == pytest.approx(0.75)
    assert measurement.counts == {
        "num_captions": 2,
        "num_questions": 4,
        "num_compared": 2,
        "num_truncated": 0,
    }
    assert measurement.dropped == {}
    assert measurement.summary.startswith("2 captions and 4 yes/no questions")


def test_pope_is_read_strictly_beside_the_official_script() -> None:
    """A no behind a line break: the script reads both as yes (accuracy ½, yes 1), the strict reading tn and fn.

    The tables and the averages stay the script's: a strict metric has no label.
    """
    questions = (
        group(question_prompt("no", "random", "a"), "\nNo"),
        group(question_prompt("yes", "random", "a"), "\nNo"),
    )
    metrics = measure(SuiteAnswers({"questions": questions}), None).metrics
    assert metrics["pope/random/accuracy"].value == 0.5
    assert metrics["pope/random/yes_ratio"].value == 1
    assert metrics["pope/random/strict_accuracy"].value == 0.5
    assert metrics["pope/random/strict_yes_ratio"].value == 0
    assert metrics["pope/random/strict_f1"].value == 0
    assert metrics["pope_yes_ratio"].value == 1
    strict = [name for name in metrics if "strict" in name]
    assert len(strict) == 5
    assert not any(metrics[name].label for name in strict)


def test_every_metric_has_an_interval() -> None:
    metrics = measure(answers(), {"a": 1.0, "b": 0.5}, num_samples=200).metrics
    expected = {"chair_s", "win_rate", "pope_f1", "pope/popular/recall", "selection"}
    assert expected <= set(metrics)
    for metric in metrics.values():
        assert metric.interval is not None
        low, high = metric.interval
        assert low <= high
    assert metrics["chair_s"].interval == (0.0, 1.0)


def test_tables_show_the_metrics_in_this_order_and_no_others() -> None:
    metrics = measure(answers(), {"a": 1.0}).metrics.values()
    assert [metric.label for metric in metrics if metric.label] == [
        "CHAIR_s",
        "CHAIR_i",
        "recall",
        "attribute errors",
        "relation errors",
        "count errors",
        "POPE accuracy",
        "POPE F1",
        "POPE yes ratio",
        "POPE random precision",
        "POPE random recall",
        "POPE random F1",
        "POPE popular precision",
        "POPE popular recall",
        "POPE popular F1",
        "win rate",
        "length",
    ]


def test_the_start_policy_draws_with_itself() -> None:
    measurement = measure(answers(), None)
    win_rate = measurement.metrics["win_rate"]
    assert (win_rate.value, win_rate.interval) == (0.5, (0.5, 0.5))
    assert measurement.counts["num_compared"] == 0


def test_no_comparison_that_worked_is_no_win_rate() -> None:
    assert "win_rate" not in measure(answers(), {}).metrics


def test_nothing_to_measure_is_absent_and_not_zero() -> None:
    without_truth = SuiteAnswers({"captions": (group(prompt(), "A dog."),)})
    suite = ShapesSuite(config.ShapesSuite())
    measurement = suite.measure(without_truth, compared({}), 10)
    assert measurement.metrics == {}
    assert measurement.dropped == {"no_truth": 1}
    assert measurement.resampled == {}


def test_equal_answers_give_equal_cards_and_json_brings_them_back() -> None:
    measurement = measure(answers(), None, num_samples=50)
    assert measurement == measure(answers(), None, num_samples=50)
    suite_card = SuiteCard(
        metrics=dict(measurement.metrics),
        counts=dict(measurement.counts),
        dropped={"judge_failed": 1},
        summary=measurement.summary,
    )
    card = Scorecard(suites={"shapes": suite_card})
    assert Scorecard.model_validate_json(card.model_dump_json()) == card


@pytest.mark.parametrize(
    ("scores", "win"), [((1.0, 0.0), 1.0), ((0.0, 1.0), 0.0), ((-1.0, -1.0), 0.5)]
)
def test_a_win_is_a_better_score_and_a_tie_is_half(
    scores: tuple[float, float], win: float
) -> None:
    assert win_of(Verdict(scores)) == win

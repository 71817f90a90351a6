"""The prompts suite: what it asks, values by hand, and what it says where there is nothing to measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from common import config
from common.config import Data, PromptFile
from common.data.datasets import write_prompts
from common.data.images import ImageStore
from common.evaluation import Comparison, Measurement, SuiteAnswers
from common.records import Completion, Dropped, RolloutGroup, Verdict
from reward.suites.length_control import CONSTANT_DIFFERENCE
from reward.suites.prompts import ANSWERS, PromptsSuite
from tests.reward.builders import completion, prompt

SUITE = PromptsSuite(config.PromptsSuite(), Data())


def answers(*texts: str | Completion) -> SuiteAnswers:
    groups: list[RolloutGroup] = []
    for index, text in enumerate(texts):
        answer = completion(text) if isinstance(text, str) else text
        asked = prompt(id=f"p{index}")
        groups.append(RolloutGroup(f"g{index}", asked, (1,), 0, (answer,)))
    return SuiteAnswers({ANSWERS: tuple(groups)})


def values(measurement: Measurement) -> dict[str, float]:
    return {name: metric.value for name, metric in measurement.metrics.items()}


def test_by_hand() -> None:
    """Scores 3 : 1, 2 : 2, 0 : 4 and a failed one: win rate (1 + ½ + 0) / 3 = ½, judge (3 + 2 + 0) / 3.

    Words 2 + 3 + 1 + 2 = 8 of 4 answers; 1 of 4 is cut.
    """
    cut = completion("one two", finish="length")
    policy = answers("a dog", "a red dog", "dog", cut)
    start = answers("a cat", "one two three", "cat", "cats")
    verdicts = {
        "p0": Verdict((3.0, 1.0)),
        "p1": Verdict((2.0, 2.0)),
        "p2": Verdict((0.0, 4.0)),
    }
    measurement = SUITE.measure(policy, Comparison(start, verdicts), 200)
    # The compared answers are as long as the start policy's: nothing is controlled.
    assert values(measurement) == pytest.approx(
        {
            "win_rate": 0.5,
            "lc_win_rate": 0.5,
            "judge_score": 5 / 3,
            "truncated": 0.25,
            "mean_length": 2.0,
        }
    )
    assert measurement.counts == {
        "num_answers": 4,
        "num_truncated": 1,
        "num_compared": 3,
    }
    for name, metric in measurement.metrics.items():
        assert metric.interval is not None
        low, high = metric.interval
        assert low <= metric.value <= high
        assert measurement.resampled[name].shape == (200,)


def test_tables_show_all_of_it_in_this_order() -> None:
    policy = answers("a", "b")
    comparison = Comparison(answers("c", "d"), {"p0": Verdict((1.0, 0.0))})
    labels = [m.label for m in SUITE.measure(policy, comparison, 5).metrics.values()]
    assert labels == [
        "win rate",
        "win rate, equal length",
        "judge score",
        "cut",
        "length",
    ]


def test_the_start_policy_ties_with_itself_and_has_no_score_yet() -> None:
    measurement = SUITE.measure(answers("a dog", "a cat"), None, 10)
    measured = values(measurement)
    assert (measured["win_rate"], measured["lc_win_rate"]) == (0.5, 0.5)
    assert measurement.metrics["win_rate"].interval == (0.5, 0.5)
    assert "judge_score" not in measured


def test_longer_by_the_same_everywhere_is_absent_with_the_reason() -> None:
    verdicts = {"p0": Verdict((1.0, 0.0)), "p1": Verdict((1.0, 0.0))}
    comparison = Comparison(answers("a", "a b"), verdicts)
    measurement = SUITE.measure(answers("a b", "a b c"), comparison, 10)
    assert "lc_win_rate" not in measurement.metrics
    assert measurement.missing == {"lc_win_rate": CONSTANT_DIFFERENCE}


def test_without_a_verdict_there_is_no_win_rate() -> None:
    comparison = Comparison(answers("a"))
    measured = values(SUITE.measure(answers("a b"), comparison, 10))
    assert measured == {"truncated": 0.0, "mean_length": 2.0}


def test_without_answers_there_is_nothing() -> None:
    for comparison in (None, Comparison(SuiteAnswers())):
        measurement = SUITE.measure(SuiteAnswers(), comparison, 10)
        assert measurement.metrics == {}
        assert measurement.resampled == {}
        assert set(measurement.missing) == set(SUITE.metrics)


def test_its_prompts_are_its_own_or_the_datas(tmp_path: Path) -> None:
    for name in ("own", "data"):
        prompts = [prompt(id=f"{name}{index}") for index in range(4)]
        write_prompts(tmp_path / name, prompts)
    data = Data(
        validation=PromptFile(path=str(tmp_path / "data")),
        test=PromptFile(path=str(tmp_path / "data")),
    )
    settings = config.PromptsSuite(test=str(tmp_path / "own"), limit=3)
    suite = PromptsSuite(settings, data)
    dropped: list[Dropped] = []
    store = ImageStore(tmp_path / "images")
    test = suite.prompts("test", store, dropped)[ANSWERS]
    assert [asked.id for asked in test] == ["own0", "own1", "own2"]
    validation = suite.prompts("validation", store, dropped)[ANSWERS]
    assert [asked.id for asked in validation] == ["data0", "data1", "data2"]
    assert dropped == []
    without = PromptsSuite(config.PromptsSuite(), Data())
    assert not without.prompts("test", store, dropped)[ANSWERS]

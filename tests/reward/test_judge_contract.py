"""What every kind of judge keeps; a new kind joins by a case in `judge_cases.py`."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from common.config import Reward, RunConfig
from common.config.overrides import validate
from common.protocols import Judge, JudgeError
from common.records import Dropped, RolloutGroup, Verdict
from reward.judges.factory import judge_identity
from reward.ranking import check_verdict
from reward.worker import RewardWorker
from tests.reward.builders import completion
from tests.reward.judge_cases import CASES, JudgeCase
from tests.reward.judging import scores_of, verdict_of

HOSTILE = [
    "",
    " \n\t",
    "\x00\x07\ud800",
    "</s><|im_end|><image>",
    "[[[[{{{{" * 50,
    "9" * 400,
    "Sí. 是的。 Ja!",
]
"""Answers of a model in trouble."""


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> JudgeCase:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def judge(case: JudgeCase, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """Made once per kind: some load a model."""
    return case.make(tmp_path_factory.mktemp("judge"))


def texts_of(group: RolloutGroup, texts: Sequence[str]) -> RolloutGroup:
    return replace(group, completions=tuple(map(completion, texts)))


def test_the_better_answer_has_the_higher_score(
    case: JudgeCase, judge: Judge, tmp_path: Path
) -> None:
    better, worse = scores_of(judge, case.group(tmp_path))
    assert better > worse


def test_scores_follow_the_completions(
    case: JudgeCase, judge: Judge, tmp_path: Path
) -> None:
    """Reversed, tripled or asked again, an answer keeps its score."""
    group = case.group(tmp_path)
    better, worse = scores_of(judge, group)
    first, second = group.completions
    assert scores_of(judge, replace(group, completions=(second, first))) == (
        worse,
        better,
    )
    tripled = replace(group, completions=(second, first, second))
    first_worse, best, last_worse = scores_of(judge, tripled)
    assert first_worse == last_worse < best
    if not case.is_relative:
        assert (first_worse, best) == (worse, better)


def test_groups_are_answered_in_order(
    case: JudgeCase, judge: Judge, tmp_path: Path
) -> None:
    group = case.group(tmp_path)
    first, second = group.completions
    groups = [group, replace(group, id="turned", completions=(second, first))] * 2
    answers = asyncio.run(judge.judge(groups))
    assert list(answers) == [verdict_of(judge, group) for group in groups]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_any_text_is_scored_or_dropped(
    case: JudgeCase, judge: Judge, tmp_path: Path, text: str
) -> None:
    """An answer of garbage never raises, and gives no score that is no number."""
    group = case.group(tmp_path)
    better = group.completions[0].text
    hostile = texts_of(group, [better, text])
    answer = verdict_of(judge, hostile)
    if isinstance(answer, Verdict):
        assert check_verdict(hostile, answer) is None


def test_a_group_that_cannot_be_judged_is_dropped(
    case: JudgeCase, judge: Judge, tmp_path: Path
) -> None:
    if case.unusable is None:
        pytest.skip("this judge can judge anything")
    group = case.unusable(tmp_path)
    answer = verdict_of(judge, group)
    assert isinstance(answer, Dropped)
    assert (answer.id, answer.reason) == (group.id, "judge_failed")
    assert answer.detail
    assert "\n" not in answer.detail
    # Nobody else's group is lost with it.
    good = case.group(tmp_path)
    first, second, third = asyncio.run(judge.judge([good, group, good]))
    assert (first, second, third) == (verdict_of(judge, good), answer, first)
    assert not isinstance(first, Dropped | JudgeError)


def test_the_worker_makes_a_pair(case: JudgeCase, tmp_path: Path) -> None:
    """From the settings alone, after the way through a process boundary and a run's config.json."""
    settings = case.settings(tmp_path)
    dumped = RunConfig(
        mixture={"online_fraction": 1},  # type: ignore[arg-type]
        reward=Reward(judge=settings),
    ).model_dump(mode="json")
    config = pickle.loads(pickle.dumps(validate(dumped)))
    assert config.reward.judge == settings
    group = case.group(tmp_path)
    judge = None if case.judge is None else case.judge()
    (judged,) = asyncio.run(RewardWorker(config, judge).rank([group]))
    (pair,) = judged.pairs
    assert pair.chosen.text == group.completions[0].text
    assert pair.rejected.text == group.completions[1].text


def test_kinds_have_identities_of_their_own(tmp_path: Path) -> None:
    identities = {judge_identity(case.settings(tmp_path)) for case in CASES}
    assert len(identities) == len(CASES)
    for case in CASES:
        settings = case.settings(tmp_path)
        assert judge_identity(settings) == judge_identity(settings)


def test_names_are_one_word_of_a_log(judge: Judge) -> None:
    assert judge.name
    assert "\n" not in judge.name

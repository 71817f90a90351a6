"""Several judges as one: sums, minima and vetoes by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from common import config
from common.config.overrides import load_config
from common.errors import UserError
from common.protocols import JudgeError
from common.records import Dropped, RolloutGroup, Verdict
from reward.judges.ensemble import EnsembleJudge
from tests.reward.builders import group, prompt

GROUP = group(prompt(), "a", "b", "c")


class Says:
    """A judge with one answer."""

    def __init__(self, name: str, answer: Verdict | Dropped | JudgeError) -> None:
        self.name = name
        self._answer = answer

    async def judge(
        self, groups: Sequence[RolloutGroup]
    ) -> list[Verdict | Dropped | JudgeError]:
        return [self._answer for _ in groups]


FIRST = Says("first", Verdict((1.0, 2.0, 3.0), ("p", "q", "r")))
SECOND = Says("second", Verdict((5.0, 0.0, -2.0)))


def verdict(
    *judges: Says,
    weights: Sequence[float] = (1.0, 1.0),
    vetoes: Sequence[float | None] = (None, None),
    **settings: object,
) -> Verdict | Dropped | JudgeError:
    members = []
    for weight, veto in zip(weights, vetoes, strict=True):
        member = config.Member(
            judge=config.RulesJudge(), weight=weight, veto_below=veto
        )
        members.append(member)
    section = config.EnsembleJudge(members=tuple(members), **settings)  # type: ignore[arg-type]
    (answer,) = asyncio.run(EnsembleJudge(section, judges).judge([GROUP]))
    return answer


def test_a_weighted_sum() -> None:
    """1 + ½·5, 2 + ½·0, 3 - ½·2."""
    answer = verdict(FIRST, SECOND, weights=(1.0, 0.5))
    assert isinstance(answer, Verdict)
    assert answer.scores == (3.5, 2.0, 2.0)
    assert answer.notes[0] == "first 1 (p); second 5"
    assert answer.members == (("first", (1.0, 2.0, 3.0)), ("second", (5.0, 0.0, -2.0)))


def test_judges_of_one_name_are_told_apart() -> None:
    answer = verdict(FIRST, FIRST)
    assert isinstance(answer, Verdict)
    assert [name for name, _ in answer.members] == ["first", "first-2"]


def test_members_that_compare_tell_of_places() -> None:
    """Of three members one does not compare."""
    biased = Says("biased", Verdict((1.0, 2.0, 3.0), first_wins=0.9))
    fair = Says("fair", Verdict((1.0, 2.0, 3.0), first_wins=0.5))
    answer = verdict(
        biased, fair, SECOND, weights=(1.0, 1.0, 1.0), vetoes=(None, None, None)
    )
    assert isinstance(answer, Verdict)
    assert answer.first_wins == pytest.approx(0.7)
    answer = verdict(FIRST, SECOND)
    assert isinstance(answer, Verdict)
    assert answer.first_wins is None


def test_the_smallest_weighted_score() -> None:
    answer = verdict(FIRST, SECOND, weights=(1.0, 0.5), combine="minimum")
    assert isinstance(answer, Verdict)
    assert answer.scores == (1.0, 0.0, -1.0)


def test_a_veto_puts_a_completion_below_all_others() -> None:
    """Sums 6, 2, 1. `second` forbids b's 0 and c's -2: less (6 - 1) + 1 they are -4 and -5."""
    answer = verdict(FIRST, SECOND, vetoes=(None, 1.0))
    assert isinstance(answer, Verdict)
    assert answer.scores == (6.0, -4.0, -5.0)
    assert answer.notes[1] == "veto of second: 0 < 1"
    # The best by its sum is not safe either: a's 1 is below 1.5.
    answer = verdict(FIRST, SECOND, vetoes=(1.5, None))
    assert isinstance(answer, Verdict)
    assert answer.scores == (0.0, 2.0, 1.0)


def test_a_score_at_the_threshold_is_no_veto() -> None:
    answer = verdict(FIRST, SECOND, vetoes=(1.0, -2.0))
    assert isinstance(answer, Verdict)
    assert answer.scores == (6.0, 2.0, 1.0)


def test_when_all_are_under_a_veto_none_may_be_chosen() -> None:
    answer = verdict(FIRST, SECOND, vetoes=(3.0, 1.0))
    assert isinstance(answer, Dropped)
    assert answer.reason == "vetoed"
    assert "veto of first: 1 < 3; veto of first: 2 < 3; veto of second" in answer.detail


NO_ANSWERS = [
    Dropped("g", "judge_failed", "no truth"),
    JudgeError("busy"),
]


@pytest.mark.parametrize("answer", NO_ANSWERS, ids=["dropped", "error"])
def test_without_a_member_there_is_no_verdict(answer: Dropped | JudgeError) -> None:
    assert verdict(FIRST, Says("third", answer)) is answer


def test_a_member_that_counts_wrong_is_named() -> None:
    answer = verdict(FIRST, Says("third", Verdict((1.0,))))
    assert isinstance(answer, Dropped)
    assert (answer.reason, answer.detail[:24]) == (
        "bad_verdict",
        "third: expected 3 finite",
    )


def test_ensembles_are_not_nested() -> None:
    words = [
        "--mixture.online_fraction=1",
        "--reward.judge.kind=ensemble",
        "--reward.judge.members.0.judge.kind=ensemble",
    ]
    with pytest.raises(
        UserError, match=r"members\.0\.judge\.kind: expected rules or .* got 'ensemble'"
    ):
        load_config(None, words)


def test_an_ensemble_of_nobody_is_refused() -> None:
    words = ["--mixture.online_fraction=1", "--reward.judge.kind=ensemble"]
    with pytest.raises(UserError, match=r"reward\.judge\.members"):
        load_config(None, words)
    with pytest.raises(UserError, match=r"reward\.judge\.members"):
        load_config(None, [*words, "--reward.judge.members=[]"])

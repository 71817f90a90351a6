"""The reward worker under a judge that fails, recovers, lies or is missing its truth."""

from __future__ import annotations

import math

import pytest

from common import config
from common.config import Mixture, Reward, RunConfig
from common.protocols import JudgeError
from common.records import Dropped, PreferencePair, RolloutGroup, Verdict
from reward.rules import RulesJudge
from reward.worker import RewardWorker
from tests.reward.builders import TRUE, caption_prompt, group, prompt

CONFIG = RunConfig(mixture=Mixture(online_fraction=1))
CLEAR = Verdict((1.0, 0.0))
INVENTED = TRUE + " There is a green ring at the bottom."
GOOD = group(caption_prompt(), INVENTED, TRUE)


class FlakyJudge:
    """Fails `failures` times per group, then returns `verdict`."""

    name = "flaky"

    def __init__(self, failures: int, verdict: Verdict = CLEAR) -> None:
        self.failures, self.verdict = failures, verdict
        self.calls: dict[str, int] = {}

    def judge(self, group: RolloutGroup) -> Verdict:
        self.calls[group.id] = self.calls.get(group.id, 0) + 1
        if self.calls[group.id] <= self.failures:
            raise JudgeError("server busy")
        return self.verdict


def worker(judge: FlakyJudge, max_retries: int = 2) -> RewardWorker:
    return RewardWorker(
        CONFIG.model_copy(update={"reward": Reward(max_retries=max_retries)}),
        judge,
        backoff_s=0.0,
    )


def test_the_configured_judge_ranks_groups_in_order() -> None:
    (pair, scores), (tie, tied), (no_truth, none) = RewardWorker(CONFIG).rank(
        [
            GOOD,
            group(
                caption_prompt(),
                TRUE,
                TRUE + " ",
                TRUE + "\n\nAnd that is all.",
                id="t",
            ),
            group(prompt(), "a", "b"),
        ]
    )
    assert isinstance(pair, PreferencePair)
    assert (pair.chosen.text, pair.rejected.text, pair.scores) == (
        TRUE,
        INVENTED,
        (0.0, -1.0),
    )
    assert isinstance(tie, Dropped) and tie.reason == "tie"
    assert isinstance(no_truth, Dropped) and no_truth.reason == "judge_failed"
    assert (scores, tied, none) == ((-1.0, 0.0), (0.0, 0.0, 0.0), None)


def test_a_judge_that_fails_twice_is_asked_a_third_time() -> None:
    judge = FlakyJudge(failures=2)
    assert worker(judge).judge([GOOD]) == [judge.verdict]
    assert judge.calls == {"g": 3}


def test_a_judge_that_always_fails_costs_its_group_and_no_other_score_takes_its_place() -> (
    None
):
    judge = FlakyJudge(failures=99)
    dropped = Dropped("g", "judge_failed", "judge flaky: server busy")
    assert worker(judge).judge([GOOD]) == [dropped]
    assert worker(judge).rank([GOOD]) == [(dropped, None)]
    assert judge.calls == {"g": 6}


def test_one_failing_group_does_not_take_the_others_along() -> None:
    judge = FlakyJudge(failures=1)
    judge.calls["fine"] = 1
    fine = group(caption_prompt(), "a", "b", id="fine")
    (first, _), (second, _) = worker(judge, max_retries=0).rank([GOOD, fine])
    assert isinstance(first, Dropped) and isinstance(second, PreferencePair)


@pytest.mark.parametrize("scores", [(math.nan, 0.0), (1.0,), ()])
def test_a_garbage_verdict_is_dropped_and_not_retried(
    scores: tuple[float, ...],
) -> None:
    judge = FlakyJudge(0, Verdict(scores))
    (found,) = worker(judge).judge([GOOD])
    assert isinstance(found, Dropped) and found.reason == "bad_verdict"
    assert judge.calls == {"g": 1}


def test_missing_truth_is_not_retried() -> None:
    class Counting(RulesJudge):
        calls = 0

        def judge(self, group: RolloutGroup) -> Verdict:
            self.calls += 1
            return super().judge(group)

    judge = Counting(config.RulesJudge())
    (found,) = RewardWorker(CONFIG, judge).judge([group(prompt(), "a", "b")])
    assert isinstance(found, Dropped) and found.reason == "judge_failed"
    assert judge.calls == 1


def test_a_bug_is_not_swallowed() -> None:
    class Broken:
        name = "broken"

        def judge(self, group: RolloutGroup) -> Verdict:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        RewardWorker(CONFIG, Broken()).judge([GOOD])

"""The reward worker under a judge that fails, recovers, lies or is missing its truth."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

from common import config
from common.config import Mixture, Reward, RunConfig
from common.protocols import Judge
from common.records import Dropped, Judged, RolloutGroup, Verdict
from reward.worker import RewardWorker
from reward.worlds import rules_judge
from tests.reward.builders import TRUE, caption_prompt, group, prompt
from tests.reward.judging import FlakyJudge

CONFIG = RunConfig(mixture=Mixture(online_fraction=1))
INVENTED = TRUE + " There is a green ring at the bottom."
GOOD = group(caption_prompt(), INVENTED, TRUE)


def worker(judge: Judge, max_retries: int = 2) -> RewardWorker:
    settings = CONFIG.model_copy(update={"reward": Reward(max_retries=max_retries)})
    return RewardWorker(settings, judge, backoff_s=0.0)


def ranked(worker: RewardWorker, *groups: RolloutGroup) -> list[Judged]:
    return asyncio.run(worker.rank(groups))


def judged(worker: RewardWorker, *groups: RolloutGroup) -> list[Verdict | Dropped]:
    return asyncio.run(worker.judge(groups))


def test_the_configured_judge_ranks_groups_in_order() -> None:
    same = (TRUE, TRUE + " ", TRUE + "\n\nAnd that is all.")
    good, tie, no_truth = ranked(
        RewardWorker(CONFIG),
        GOOD,
        group(caption_prompt(), *same, id="t"),
        group(prompt(), "a", "b", id="n"),
    )
    (pair,) = good.pairs
    assert (pair.chosen.text, pair.rejected.text) == (TRUE, INVENTED)
    assert pair.scores == (0.0, -1.0)
    assert (good.chosen, good.rejected) == ((1,), (0,))
    assert good.verdict.scores == (-1.0, 0.0)
    assert good.verdict.notes == ("hallucinated green ring", "flawless")
    assert tie.dropped.reason == "tie"
    assert tie.verdict.scores == (0.0, 0.0, 0.0)
    assert no_truth.dropped.reason == "judge_failed"
    assert no_truth.verdict is None
    assert [good.group_id, tie.group_id, no_truth.group_id] == ["g", "t", "n"]


def test_a_judge_that_fails_twice_is_asked_a_third_time() -> None:
    judge = FlakyJudge(failures=2)
    assert judged(worker(judge), GOOD) == [judge.verdict]
    assert judge.calls == {"g": 3}


def test_a_judge_that_always_fails_costs_its_group_and_no_other_score_takes_its_place() -> (
    None
):
    judge = FlakyJudge(failures=99)
    dropped = Dropped("g", "judge_failed", "judge flaky, prompt p: server busy")
    assert judged(worker(judge), GOOD) == [dropped]
    assert ranked(worker(judge), GOOD) == [Judged("g", dropped=dropped)]
    assert judge.calls == {"g": 6}


def test_one_failing_group_does_not_take_the_others_along() -> None:
    """Both are asked about at once, which fails for the first one's sake; then each alone."""
    judge = FlakyJudge(failures=2)
    judge.calls["fine"] = 2
    fine = group(caption_prompt(), "a", "b", id="fine")
    first, second = ranked(worker(judge, max_retries=0), GOOD, fine)
    assert first.dropped.reason == "judge_failed"
    assert len(second.pairs) == 1


def test_a_judge_that_works_is_asked_once_for_all_groups() -> None:
    sizes: list[int] = []

    class Counting(FlakyJudge):
        async def judge(
            self, groups: Sequence[RolloutGroup]
        ) -> list[Verdict | Dropped]:
            sizes.append(len(groups))
            return await super().judge(groups)

    others = [group(caption_prompt(), "a", "b", id=id) for id in "xyz"]
    ranked(worker(Counting(failures=0)), GOOD, *others)
    assert sizes == [4]


@pytest.mark.parametrize("scores", [(math.nan, 0.0), (1.0,), ()])
def test_a_garbage_verdict_is_dropped_and_not_retried(
    scores: tuple[float, ...],
) -> None:
    judge = FlakyJudge(0, Verdict(scores))
    (dropped,) = judged(worker(judge), GOOD)
    assert isinstance(dropped, Dropped) and dropped.reason == "bad_verdict"
    assert judge.calls == {"g": 1}


def test_missing_truth_is_not_retried() -> None:
    calls: list[int] = []
    rules = rules_judge(config.RulesJudge())

    class Counting:
        name = "rules"

        async def judge(
            self, groups: Sequence[RolloutGroup]
        ) -> list[Verdict | Dropped]:
            calls.append(len(groups))
            return await rules.judge(groups)

    (dropped,) = judged(RewardWorker(CONFIG, Counting()), group(prompt(), "a", "b"))
    assert isinstance(dropped, Dropped) and dropped.reason == "judge_failed"
    assert calls == [1]


class Broken:
    name = "broken"

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        raise ZeroDivisionError


class Forgetful:
    name = "forgetful"

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        return []


def test_a_bug_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        judged(RewardWorker(CONFIG, Broken()), GOOD)


def test_a_judge_that_leaves_a_group_out_is_a_bug() -> None:
    with pytest.raises(
        RuntimeError, match=r"each of 1 groups \(prompt p first\), got 0"
    ):
        judged(RewardWorker(CONFIG, Forgetful()), GOOD)

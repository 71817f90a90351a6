"""Groups become pairs of advantages: by hand, every completion once, and when there are none."""

from __future__ import annotations

import asyncio
import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import Learner, Mixture, RunConfig
from common.config.losses import Rloo
from common.records import Verdict
from reward.rloo import leave_one_out, rloo_pairs
from reward.worker import RewardWorker
from tests.reward.builders import caption_prompt, group
from tests.reward.judging import FlakyJudge

PROMPT = caption_prompt()


def test_leave_one_out_by_hand() -> None:
    """Others' means of (1, 0, 0, 3): 1, 4/3, 4/3, 1/3."""
    assert leave_one_out((1, 0, 0, 3)) == pytest.approx((0, -4 / 3, -4 / 3, 8 / 3))


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.floats(-100, 100))
def test_advantages_add_up_to_nothing_and_forget_the_level(
    scores: list[float], level: float
) -> None:
    advantages = leave_one_out(scores)
    assert sum(advantages) == pytest.approx(0, abs=1e-6)
    raised = leave_one_out([score + level for score in scores])
    assert advantages == pytest.approx(raised, abs=1e-6)
    # The same by another formula: k / (k - 1) times the distance from the mean of all.
    mean = fmean(scores)
    factor = len(scores) / (len(scores) - 1)
    from_mean = [factor * (score - mean) for score in scores]
    assert advantages == pytest.approx(from_mean, abs=1e-6)


def test_every_completion_once_with_its_advantage_beside_its_neighbour() -> None:
    rolled = group(PROMPT, "a", "b", "c", "d", id="0:p", versions=(4, 3, 5, 6))
    judged = rloo_pairs(rolled, Verdict((1.0, 0.0, 0.0, 3.0)))
    first, second = judged.pairs
    assert judged.chosen == (0, 3)
    assert judged.rejected == (1, 2)

    assert first.id == "0:p#0"
    assert first.source == "rloo"
    assert first.chosen.text == "a"
    assert first.rejected.text == "b"
    # The older of 4 and 3.
    assert first.weight_version == 3
    assert first.scores == pytest.approx((0, -4 / 3))
    assert first.chosen.token_ids == (97,)
    assert first.prompt_token_ids == (1, 2, 3)

    # The later completion has the higher score.
    assert second.id == "0:p#1"
    assert second.source == "rloo"
    assert second.chosen.text == "d"
    assert second.rejected.text == "c"
    assert second.weight_version == 5
    assert second.scores == pytest.approx((8 / 3, -4 / 3))


def test_equal_texts_and_small_differences_count() -> None:
    rolled = group(PROMPT, "a", "a", "a", "b")
    judged = rloo_pairs(rolled, Verdict((0.0, 0.0, 0.0, 1e-9)))
    assert len(judged.pairs) == 2


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ((1.0,) * 4, "tie"),
        ((1.0, 2.0), "bad_verdict"),
        ((1, 2, 3, math.nan), "bad_verdict"),
    ],
)
def test_drops(scores: tuple[float, ...], reason: str) -> None:
    judged = rloo_pairs(group(PROMPT, "a", "b", "c", "d"), Verdict(scores))
    assert (judged.group_id, judged.dropped.reason) == ("g", reason)
    # A tie is a verdict, garbage is none.
    assert (judged.verdict is None) == (reason == "bad_verdict")


def test_the_worker_keeps_order_and_counts_failures() -> None:
    judge = FlakyJudge(failures=99, verdict=Verdict((1.0, 0.0)))
    # These two have failed often enough to be answered.
    judge.calls = {"x": 99, "y": 99}
    config = RunConfig(
        mixture=Mixture(online_fraction=1),
        learner=Learner(loss=Rloo()),
    )
    reward = RewardWorker(config, judge, backoff_s=0.0)
    groups = [group(PROMPT, "a", "b", id=id) for id in ("x", "bad", "y")]
    first, failed, second = asyncio.run(reward.rank(groups))
    assert failed.dropped.id == "bad"
    assert failed.dropped.reason == "judge_failed"
    assert failed.verdict is None
    assert first.pairs[0].id == "x#0"
    assert second.pairs[0].id == "y#0"
    assert first.pairs[0].scores == (1.0, -1.0)
    assert first.verdict.scores == (1.0, 0.0)

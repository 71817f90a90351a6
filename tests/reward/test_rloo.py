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
    assert advantages == pytest.approx(
        leave_one_out([score + level for score in scores]), abs=1e-6
    )
    mean = fmean(scores)
    assert advantages == pytest.approx(
        [len(scores) / (len(scores) - 1) * (s - mean) for s in scores], abs=1e-6
    )


def test_every_completion_once_with_its_advantage_beside_its_neighbour() -> None:
    rolled = group(PROMPT, "a", "b", "c", "d", id="0:p", versions=(4, 3, 5, 6))
    judged = rloo_pairs(rolled, Verdict((1.0, 0.0, 0.0, 3.0)))
    first, second = judged.pairs
    assert (judged.chosen, judged.rejected) == ((0, 3), (1, 2))
    assert [(first.id, first.source), (second.id, second.source)] == [
        ("0:p#0", "rloo"),
        ("0:p#1", "rloo"),
    ]
    assert (first.chosen.text, first.rejected.text, first.weight_version) == (
        "a",
        "b",
        3,
    )
    assert (second.chosen.text, second.rejected.text, second.weight_version) == (
        "d",
        "c",
        5,
    )
    assert first.scores == pytest.approx((0, -4 / 3))
    assert second.scores == pytest.approx((8 / 3, -4 / 3))
    assert (first.chosen.token_ids, first.prompt_token_ids) == ((97,), (1, 2, 3))


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
    judge.calls = {"x": 99, "y": 99}
    reward = RewardWorker(
        RunConfig(
            mixture=Mixture(online_fraction=1),
            learner=Learner(loss=Rloo()),
        ),
        judge,
        backoff_s=0.0,
    )
    groups = [group(PROMPT, "a", "b", id=id) for id in ("x", "bad", "y")]
    first, failed, second = asyncio.run(reward.rank(groups))
    assert (failed.dropped.id, failed.dropped.reason) == ("bad", "judge_failed")
    assert failed.verdict is None
    assert (first.pairs[0].id, second.pairs[0].id) == ("x#0", "y#0")
    assert first.pairs[0].scores == (1.0, -1.0)
    assert first.verdict.scores == (1.0, 0.0)

"""Advantages over the group: by hand, against RLOO's, and on the way from the worker."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import RunConfig
from common.records import PreferencePair, Verdict
from reward.grpo import group_relative, grpo_pairs
from reward.rloo import leave_one_out
from reward.worker import RewardWorker
from tests.reward.builders import caption_prompt, group
from tests.reward.judging import FlakyJudge

PROMPT = caption_prompt()
SCORES = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


def test_advantages_by_hand() -> None:
    """Mean of (1, 0, 0, 3) is 1, squares around it 0, 1, 1, 4: std = sqrt(6 / 3)."""
    plain = group_relative((1, 0, 0, 3), normalise=False)
    assert plain == pytest.approx((0, -1, -1, 2))
    scaled = group_relative((1, 0, 0, 3), normalise=True)
    root = math.sqrt(2)
    assert scaled == pytest.approx((0, -1 / root, -1 / root, root))


@given(SCORES)
def test_advantages_are_rloos_up_to_a_factor(scores: list[float]) -> None:
    """r - mean = (k - 1) / k times the distance from the mean of the others."""
    factor = (len(scores) - 1) / len(scores)
    expected = [factor * advantage for advantage in leave_one_out(scores)]
    plain = group_relative(scores, normalise=False)
    assert plain == pytest.approx(expected, abs=1e-9)


@given(SCORES.filter(lambda scores: len(set(scores)) > 1), st.floats(0.1, 10))
def test_normalised_advantages_forget_the_scale_of_scores(
    scores: list[float], factor: float
) -> None:
    """Mean 0 and standard deviation 1, also where scores differ in their last digit."""
    advantages = group_relative(scores, normalise=True)
    assert fmean(advantages) == pytest.approx(0, abs=1e-6)
    if max(scores) - min(scores) > 1e-6:
        assert stdev(advantages) == pytest.approx(1)
        scaled = [factor * score for score in scores]
        again = group_relative(scaled, normalise=True)
        assert again == pytest.approx(advantages, abs=1e-6)


def test_completions_travel_with_the_log_probs_of_their_sampling() -> None:
    """Two by two in the order of sampling, as for RLOO."""
    rolled = group(PROMPT, "a", "b", "c", "d", id="0:p", versions=(4, 3, 5, 6))
    completions = [
        replace(completion, token_logprobs=(-float(place),))
        for place, completion in enumerate(rolled.completions)
    ]
    rolled = replace(rolled, completions=tuple(completions))
    judged = grpo_pairs(rolled, Verdict((1.0, 0.0, 0.0, 3.0)), normalise=False)
    first, second = judged.pairs
    assert (judged.chosen, judged.rejected) == ((0, 3), (1, 2))
    assert (first.id, first.source, first.weight_version) == ("0:p#0", "grpo", 3)
    assert first.scores == pytest.approx((0, -1))
    assert second.scores == pytest.approx((2, -1))
    assert second.chosen.token_logprobs == (-3.0,)
    assert second.rejected.token_logprobs == (-2.0,)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [((1.0,) * 4, "tie"), ((1.0, 2.0), "bad_verdict")],
)
def test_drops(scores: tuple[float, ...], reason: str) -> None:
    rolled = group(PROMPT, "a", "b", "c", "d")
    judged = grpo_pairs(rolled, Verdict(scores), normalise=True)
    assert judged.dropped is not None
    assert judged.dropped.reason == reason


@pytest.mark.parametrize(("normalise", "advantage"), [(True, 0.5**0.5), (False, 0.5)])
def test_the_worker_makes_them_as_configured(normalise: bool, advantage: float) -> None:
    """Scores 1 and 0: mean 0.5, std sqrt(0.5)."""
    loss = {"kind": "grpo", "normalise": normalise}
    tree = {"learner": {"loss": loss}, "mixture": {"online_fraction": 1}}
    judge = FlakyJudge(failures=0, verdict=Verdict((1.0, 0.0)))
    reward = RewardWorker(RunConfig.model_validate(tree), judge, backoff_s=0.0)
    (judged,) = asyncio.run(reward.rank([group(PROMPT, "a", "b", id="x")]))
    pair: PreferencePair = judged.pairs[0]
    assert pair.id == "x#0"
    assert pair.scores == pytest.approx((advantage, -advantage))

"""Each detector on streams made by hand: what it says, when, and what it lets pass."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cluster.harm.alert import Alert
from common.config import RunConfig
from tests.cluster.harm.streams import Line, alerts_of, config_of, ramp


def only(alerts: list[Alert], kind: str) -> Alert:
    """The one thing that is said."""
    assert [alert.kind for alert in alerts] == [kind], alerts
    return alerts[0]


# Where a metric leaves its beginning.


def test_the_end_token_gets_less_likely() -> None:
    """0.004 less with each step from 0: the mean of five is below -0.015 at step 7 (-0.016), below -0.03 at step 11."""
    lines = ramp("drift/chosen_end", 0, -0.004, 11)
    alert = only(alerts_of(lines), "end_token")
    assert (alert.step, alert.since) == (11, 7)
    assert alert.metric == "drift/chosen_end"
    assert "3% less likely" in alert.text
    assert "-0.032" in alert.text
    assert "learner.loss.nll_weight = 1" in alert.text
    assert alert.line.startswith("step 11, since step 7: ")


@pytest.mark.parametrize("drift", ["drift/chosen_end", "drift/chosen"])
def test_a_drift_begins_at_0_whenever_it_is_first_seen(drift: str) -> None:
    """Its first steps had no chosen answer with an end, or were skipped: what is seen first has drifted already."""
    lines: list[Line] = [{"loss": 0.7}] * 3 + [{drift: -0.06}] * 5
    (alert,) = alerts_of(lines)
    assert (alert.metric, alert.step) == (drift, 8)


def test_it_is_said_again_when_it_has_grown_fourfold() -> None:
    lines = ramp("drift/chosen_end", 0, -0.004, 60)
    steps = [alert.step for alert in alerts_of(lines)]
    # 0.032, then 0.128.
    assert steps == [11, 35]


def test_an_end_token_that_gets_likelier_is_no_harm() -> None:
    assert alerts_of(ramp("drift/chosen_end", 0, 0.01)) == []


def test_chosen_answers_get_less_likely() -> None:
    lines: list[Line] = []
    for step in range(40):
        line = {"drift/chosen": -0.003 * step, "rewards/margins": 0.1 * step}
        lines.append(line)
    first, *_ = alerts_of(lines)
    assert first.kind == "chosen_logp"
    assert "rewards/margins +1." in first.text


@pytest.mark.parametrize(
    ("loss", "advice"),
    [
        ({}, "set learner.loss.nll_weight = 1"),
        ({"nll_weight": 0.1}, "raise learner.loss.nll_weight to 1, got 0.1"),
        ({"nll_weight": 1}, "lower learner.optimizer.lr"),
        ({"kind": "mdpo"}, "lower learner.optimizer.lr"),
        ({"kind": "mpo"}, "lower learner.optimizer.lr"),
        # Anchors that are switched off are none.
        (
            {"kind": "mdpo", "anchor_weight": 0},
            "raise learner.loss.anchor_weight, got 0",
        ),
        (
            {"kind": "mpo", "generation_weight": 0},
            "raise learner.loss.generation_weight, got 0",
        ),
        (
            {"kind": "mdpo", "anchor_weight": 0, "nll_weight": 1},
            "lower learner.optimizer.lr",
        ),
    ],
)
def test_the_advice_knows_what_is_set(loss: dict[str, Any], advice: str) -> None:
    config = config_of(learner={"loss": loss})
    (alert, *_) = alerts_of(ramp("drift/chosen_end", 0, -0.01), config)
    assert advice in alert.text


def test_the_advice_knows_the_losses_of_sources() -> None:
    sources = {"bdhs": {"nll_weight": 1}, "povid": {"nll_weight": 0.5}}
    learner = {"loss": {"nll_weight": 1}, "source_losses": sources}
    config = config_of(learner=learner)
    (alert, *_) = alerts_of(ramp("drift/chosen_end", 0, -0.01), config)
    assert "raise learner.source_losses.povid.nll_weight to 1, got 0.5" in alert.text


def test_sampled_answers_grow() -> None:
    """A token more with each step from 20: the first five are 22 in the mean, the next five 27, more than 1.2 · 22."""
    alert = alerts_of(ramp("completions/mean_length", 20, 1, 15))[0]
    assert alert.kind == "length"
    assert alert.step == 10
    assert "22.0 -> 27.0 tokens" in alert.text


def test_answers_to_prompts_drawn_by_worth_are_compared_prompt_by_prompt() -> None:
    """Hard prompts come more often, so answers grow in the mean. A ratio of 1.0, 1.1, … is 1.3 in steps 2 to 6."""
    config = config_of(rollout={"draw": "by_worth"})
    assert alerts_of(ramp("completions/mean_length", 20, 1, 15), config) == []
    alert = alerts_of(ramp("completions/length_ratio", 1, 0.1, 15), config)[0]
    assert (alert.kind, alert.step) == ("length", 6)
    assert "1.0 -> 1.3 of the prompt's first answers" in alert.text


def test_more_answers_are_cut_off() -> None:
    config = config_of(rollout={"max_tokens": 72})
    alert = alerts_of(ramp("completions/cut_off_frac", 0, 0.02, 20), config)[0]
    assert alert.kind == "cut_off"
    assert "rollout.max_tokens = 72" in alert.text


def test_completions_become_alike() -> None:
    config = config_of(rollout={"num_completions": 4})
    alert = alerts_of(ramp("completions/distinct_bigrams", 0.3, -0.01, 30), config)[0]
    assert alert.kind == "diversity"
    assert "rollout.num_completions, got 4" in alert.text


def test_more_variety_or_none_at_all_is_no_news() -> None:
    assert alerts_of(ramp("completions/distinct_bigrams", 0.1, 0.02)) == []
    assert alerts_of(ramp("completions/distinct_bigrams", 0, 0)) == []


# A judge that looks at the form.


def judged(
    share: float, count: float, steps: int, metric: str = "longer"
) -> list[Line]:
    names = {
        "longer": ("judge/longer_wins", "judge/num_longer"),
        "first": ("judge/first_wins", "judge/num_ordered"),
    }
    wins, groups = names[metric]
    return [{wins: share, groups: count}] * steps


def test_a_judge_that_always_prefers_the_longer_answer() -> None:
    """n of n groups: n / (n + 9) > 0.75 from 28 on, so with 4 a step at step 7."""
    alert = only(alerts_of(judged(1.0, 4, 30)), "longer_wins")
    assert (alert.step, alert.since) == (7, 1)
    assert "100% of 28 groups" in alert.text
    assert "reward.judge.kind = ensemble" in alert.text


def test_a_judge_that_can_be_told_is_told() -> None:
    judge = {"kind": "endpoint", "base_url": "http://localhost:1/v1", "model": "judge"}
    config = config_of(reward={"judge": judge})
    alert = only(alerts_of(judged(1.0, 30, 1), config), "longer_wins")
    assert "reward.judge.template" in alert.text


def test_a_judge_without_a_template_of_comparisons_is_joined() -> None:
    """That of claims asks about one claim: it says nothing of two answers."""
    eye = {"kind": "endpoint", "base_url": "http://localhost:1/v1", "model": "judge"}
    config = config_of(reward={"judge": {"kind": "claims", "eye": eye}})
    alert = only(alerts_of(judged(1.0, 30, 1), config), "longer_wins")
    assert "reward.judge.kind = ensemble" in alert.text


def test_a_judge_that_often_prefers_the_longer_one_may_be_right() -> None:
    assert alerts_of(judged(0.75, 100, 50)) == []
    assert alerts_of(judged(0.0, 100, 50)) == []


def test_few_groups_prove_nothing() -> None:
    assert alerts_of(judged(1.0, 1, 20)) == []


@pytest.mark.parametrize(("share", "place"), [(0.95, "first"), (0.05, "second")])
def test_a_judge_that_prefers_a_place(share: float, place: str) -> None:
    alert = only(alerts_of(judged(share, 10, 30, "first")), "first_wins")
    assert f"shown {place}, in 95% of its verdicts" in alert.text


SERVER = {"kind": "endpoint", "base_url": "http://localhost:1/v1", "model": "judge"}


@pytest.mark.parametrize(
    ("judge", "advice"),
    [
        (SERVER, "set reward.judge.mode = pointwise"),
        (
            {"kind": "ensemble", "members": [{"judge": SERVER}]},
            "set the mode of the member that compares = pointwise",
        ),
        # A setting of the user's own that has this name is not ours.
        (
            {"kind": "my_judge.py:Judge", "mode": "fast"},
            "let it score answers one by one",
        ),
    ],
)
def test_the_advice_knows_which_judge_compares(
    judge: dict[str, Any], advice: str
) -> None:
    config = config_of(reward={"judge": judge})
    alert = only(alerts_of(judged(0.95, 10, 30, "first"), config), "first_wins")
    assert advice in alert.text


def test_a_judge_without_a_preferred_place() -> None:
    assert alerts_of(judged(0.55, 50, 30, "first")) == []


# A preference that needs no picture.


def gate(seeing: float, blind: float, count: int = 16, steps: int = 4) -> list[Line]:
    line = {
        "grounding/accuracy_true": seeing,
        "grounding/accuracy_blank": blind,
        "grounding/num_pairs_true": float(count),
        "grounding/num_pairs_blank": float(count),
    }
    return [line] * steps


def test_a_blank_picture_explains_the_accuracy() -> None:
    alert = only(alerts_of(gate(15 / 16, 14 / 16)), "blind")
    assert alert.step == 1
    assert "94% of the pairs with the picture" in alert.text
    assert "learner.loss.kind = mdpo" in alert.text


@pytest.mark.parametrize(
    ("learner", "advice"),
    [
        ({"loss": {"kind": "mdpo"}}, "; raise learner.loss.image_weight, or look"),
        (
            {"loss": {"kind": "mdpo"}, "source_losses": {"bdhs": {"kind": "ipo"}}},
            "; set learner.source_losses.bdhs.kind = mdpo, or look",
        ),
    ],
)
def test_mdpo_is_not_advised_to_mdpo(learner: dict[str, Any], advice: str) -> None:
    config = config_of(learner=learner)
    alert = only(alerts_of(gate(15 / 16, 14 / 16), config), "blind")
    assert advice in alert.text


@pytest.mark.parametrize(
    ("seeing", "blind"),
    [
        # The picture adds a lot.
        (15 / 16, 9 / 16),
        # Nothing is preferred that could be explained.
        (9 / 16, 9 / 16),
        (4 / 16, 4 / 16),
    ],
)
def test_a_preference_that_sees_or_is_none(seeing: float, blind: float) -> None:
    assert alerts_of(gate(seeing, blind)) == []


# What holds for all.

NAMES = (
    "drift/chosen_end",
    "drift/chosen",
    "completions/mean_length",
    "completions/cut_off_frac",
    "completions/distinct_bigrams",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-2.0, -0.1, 0.0, 1 / 3, 0.9, 50.0])
def test_a_constant_stream_never_warns(name: str, value: float) -> None:
    """But a drift, which begins at 0."""
    has_fallen = name.startswith("drift") and value < 0
    alerts = alerts_of([{name: value}] * 100)
    assert len(alerts) == has_fallen


@pytest.mark.parametrize("name", NAMES)
def test_a_noisy_stream_that_goes_nowhere_never_warns(name: str) -> None:
    """Thirty runs of 200 steps; a value is off by a quarter."""
    for seed in range(30):
        rng = random.Random(seed)
        lines = [{name: rng.gauss(0.4, 0.1)} for _ in range(200)]
        # A drift begins at 0.
        if name.startswith("drift"):
            lines = [{name: rng.gauss(0, 0.02)} for _ in range(200)]
        assert alerts_of(lines) == [], (name, seed)


def test_a_run_without_any_of_it_says_nothing() -> None:
    assert alerts_of([{"loss": 0.1}] * 50) == []


def test_one_switch_silences_all() -> None:
    config = RunConfig.model_validate(
        {
            "mixture": {"online_fraction": 1},
            "loop": {"warnings": {"enabled": False}},
        }
    )
    lines = [*ramp("drift/chosen_end", 0, -0.1), *judged(1.0, 50, 20)]
    assert alerts_of(lines, config) == []

"""The grounding gate of the scorecard, counted by hand."""

from __future__ import annotations

import pytest

from common.records import Dropped, SideLogps
from reward.suites.grounding import Grounding, make_grounding


def side(chosen: float, rejected: float, *tokens: int) -> SideLogps:
    chosen_tokens, rejected_tokens = tokens or (4, 4)
    return SideLogps(chosen, rejected, chosen_tokens, rejected_tokens)


START = {
    "true": {"a": side(-8, -4), "b": side(-4, -4)},
    "blank": {"a": side(-8, -4), "b": side(-4, -4)},
    "shuffled": {"a": side(-8, -4), "b": side(-4, -4)},
}


def test_implicit_rewards_by_hand() -> None:
    """True: a moved by +1 against -1, b by +1 against 0: 2 of 2. Blank: a by +1 against 0, b by 0 against 0, a tie:
    1 of 2. Shuffled: 0 of 2. The picture adds 1 - 1/2."""
    policy = {
        "true": {"a": side(-7, -5), "b": side(-3, -4)},
        "blank": {"a": side(-7, -4), "b": side(-4, -4)},
        "shuffled": {"a": side(-9, -4), "b": side(-5, -4)},
    }
    grounding = make_grounding(policy, START, 0.1, 50, [Dropped("c", "image_missing")])
    assert grounding.ranked_by == "implicit_reward"
    assert grounding.num_pairs == 2
    assert grounding.accuracy == {"true": 1.0, "blank": 0.5, "shuffled": 0.0}
    assert grounding.gain == 0.5
    assert grounding.warning is None
    assert grounding.missing is None
    assert set(grounding.intervals) == {"true", "blank", "shuffled", "gain"}
    assert grounding.intervals["true"] == (1.0, 1.0)
    assert grounding.dropped == {"image_missing": 1}
    back = Grounding.model_validate_json(grounding.model_dump_json())
    assert back == grounding


def test_the_start_policy_is_ranked_per_token() -> None:
    """As whole log-probs -6 < -5; per token -6/6 > -5/4."""
    view = {"a": side(-6, -5, 6, 4)}
    grounding = make_grounding({"true": view, "blank": view}, None, 0.1, 10)
    assert grounding.ranked_by == "logp_per_token"
    assert grounding.accuracy == {"true": 1.0, "blank": 1.0}


def test_an_accuracy_that_survives_is_a_warning() -> None:
    """All three views 1 of 1: the picture adds 0."""
    policy = {view: {"a": side(-7, -4)} for view in START}
    grounding = make_grounding(policy, START, 0.1, 10)
    assert grounding.gain == 0
    assert grounding.warning is not None
    assert "1.000 with a blank one" in grounding.warning
    assert make_grounding(policy, START, 0.0, 10).warning is None


def test_no_preference_at_all_is_another_warning() -> None:
    """The start policy against itself: every implicit reward is 0."""
    grounding = make_grounding(START, START, 0.1, 10)
    assert grounding.accuracy["true"] == 0
    assert grounding.warning is not None
    assert "not preferred even with the picture" in grounding.warning


def test_only_pairs_of_every_view_and_both_policies_count() -> None:
    policy = {
        "true": {"a": side(-7, -4), "b": side(-1, -9)},
        "blank": {"a": side(-9, -4)},
    }
    grounding = make_grounding(policy, START, 0.1, 10)
    assert grounding.num_pairs == 1
    assert grounding.accuracy == {"true": 1.0, "blank": 0.0}


@pytest.mark.parametrize(
    "policy",
    [{}, {"true": {"a": side(-1, -2)}}, {"true": {"a": side(-1, -2)}, "blank": {}}],
)
def test_nothing_to_compare_says_so(policy: dict) -> None:
    grounding = make_grounding(policy, START, 0.1, 10)
    assert grounding.gain is None
    assert grounding.accuracy == {}
    assert grounding.missing is not None
    scored = {"true": START["true"], "blank": START["blank"]}
    assert make_grounding(scored, {}, 0.1, 10).missing is not None

"""The preference suite: implicit rewards by hand, the start policy, and the pairs of its splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from common import config
from common.data.datasets import write_pairs
from common.data.images import ImageStore
from common.evaluation import Comparison, SuiteAnswers
from common.records import Dropped, PreferencePair, Response, SideLogps
from reward.suites.preference import PreferenceSuite
from tests.reward.builders import prompt

SUITE = PreferenceSuite(config.PreferenceSuite())


def scored(**logps: tuple[float, float]) -> SuiteAnswers:
    """Pairs of 2 and 4 tokens."""
    return SuiteAnswers(
        logps={id: SideLogps(*sides, 2, 4) for id, sides in logps.items()}
    )


POLICY = scored(a=(-1.0, -4.0), b=(-3.0, -4.0), c=(-2.0, -8.0))
START = scored(a=(-2.0, -4.0), b=(-2.0, -4.0), c=(-2.0, -8.0))


def test_by_hand() -> None:
    """Rewards: a +1 : 0, b -1 : 0, c 0 : 0. Right: 1 + 0 + ½ of 3. Margins 1 - 1 + 0.

    Per token: a -0.5 > -1, b -1.5 < -1, c -1 > -2: 2 of 3.
    """
    measurement = SUITE.measure(POLICY, Comparison(START), 50)
    values = {name: metric.value for name, metric in measurement.metrics.items()}
    assert values == pytest.approx(
        {"accuracy": 0.5, "margin": 0.0, "logp_accuracy": 2 / 3}
    )
    bounds = measurement.metrics["margin"].interval
    assert bounds is not None and -1 <= bounds[0] < 0 < bounds[1] <= 1
    assert measurement.counts == {"num_pairs": 3}


def test_the_start_policy_has_no_rewards() -> None:
    """Alone and beside itself: all ties. Per token: a -1 = -1, b the same, c -1 > -2."""
    alone = SUITE.measure(START, None, 10).metrics
    beside_itself = SUITE.measure(START, Comparison(START), 10).metrics
    assert alone == beside_itself
    assert alone["accuracy"].value == 0.5
    assert alone["margin"].value == 0.0
    assert alone["logp_accuracy"].value == pytest.approx(1 / 3)


def test_a_pair_that_the_start_policy_could_not_score_has_no_reward() -> None:
    measured = SUITE.measure(POLICY, Comparison(scored(a=(-2.0, -4.0))), 10).metrics
    assert (measured["accuracy"].value, measured["margin"].value) == (1.0, 1.0)
    nothing = SUITE.measure(POLICY, Comparison(SuiteAnswers()), 10).metrics
    assert list(nothing) == ["logp_accuracy"]
    assert SUITE.measure(SuiteAnswers(), None, 10).metrics == {}


def test_pairs_of_a_split_come_as_text(tmp_path: Path) -> None:
    pairs = [
        PreferencePair(f"x{index}", prompt(), Response("a", (1,)), Response("b"), "x")
        for index in range(3)
    ]
    write_pairs(tmp_path / "held", pairs)
    suite = PreferenceSuite(
        config.PreferenceSuite(test=str(tmp_path / "held"), limit=2)
    )
    dropped: list[Dropped] = []
    store = ImageStore(tmp_path / "images")
    test = suite.pairs("test", store, dropped)
    assert [pair.id for pair in test] == ["x0", "x1"]
    # The tokens in the set may be another tokenizer's.
    assert all(pair.chosen.token_ids is None for pair in test)
    assert suite.pairs("validation", store, dropped) == ()
    assert suite.prompts("test", store, dropped) == {}

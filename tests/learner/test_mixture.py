from __future__ import annotations

import math

import pytest

from common.config import Mixture as MixtureConfig
from learner.mixture import Bernoulli, Ratio, build_mixture


def test_bernoulli_is_a_function_of_seed_and_step() -> None:
    first, again, other = Bernoulli(0.5, 32, 7), Bernoulli(0.5, 32, 7), Bernoulli(0.5, 32, 8)
    draws = [first.num_online(step) for step in range(50)]
    assert draws == [again.num_online(step) for step in reversed(range(50))][::-1]
    assert draws != [other.num_online(step) for step in range(50)]


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_bernoulli_statistics(fraction: float) -> None:
    """n = 1000·32 coins: mean np, standard deviation sqrt(np(1-p)); 5 of them. Variance per batch 32p(1-p) ± 25 %."""
    draws = [Bernoulli(fraction, 32, 0).num_online(step) for step in range(1000)]
    deviation = math.sqrt(32_000 * fraction * (1 - fraction))
    assert abs(sum(draws) - 32_000 * fraction) < 5 * deviation
    mean = sum(draws) / 1000
    variance = sum((draw - mean) ** 2 for draw in draws) / 999
    assert variance == pytest.approx(32 * fraction * (1 - fraction), rel=0.25)


@pytest.mark.parametrize("kind", ["bernoulli", "ratio"])
@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (1.0, 32)])
def test_pure_mixtures(kind: str, fraction: float, expected: int) -> None:
    mixture = build_mixture(MixtureConfig(kind=kind, online_fraction=fraction), 32, 0)
    assert {mixture.num_online(step) for step in range(100)} == {expected}


@pytest.mark.parametrize("fraction", [0.1, 0.3, 1 / 3, 0.5, 0.7])
def test_ratio_carries_what_does_not_divide(fraction: float) -> None:
    """Batches of 7: after n steps floor(7·n·fraction) online pairs were asked for, never off by a whole pair."""
    mixture = Ratio(fraction, 7)
    draws = [mixture.num_online(step) for step in range(3000)]
    assert set(draws) <= {math.floor(7 * fraction), math.ceil(7 * fraction)}
    for steps in (1, 10, 3000):
        assert abs(sum(draws[:steps]) - steps * 7 * fraction) < 1

"""Shares of online pairs by hand, by statistics, and the coins of earlier runs."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.sampling.mixture import (
    Bernoulli,
    Mixture,
    Ratio,
    Schedule,
    build_mixture,
    online_counts,
)
from common.config import Learner
from common.config import Mixture as MixtureConfig
from common.seeding import derive_seed

BATCHES = Learner(global_batch=32, num_steps=50)


def online(mixture: Mixture, num_steps: int) -> list[int]:
    """Online pairs of steps 1 … num_steps."""
    return [mixture.num_online(step) for step in range(1, num_steps + 1)]


def bdhs(mixture: Mixture, num_steps: int) -> list[int]:
    """BDHS pairs among them."""
    return [mixture.num_online_bdhs(step) for step in range(1, num_steps + 1)]


def test_bernoulli_is_a_function_of_seed_and_step() -> None:
    first = Bernoulli(0.5, 32, seed=7)
    draws = online(first, 50)
    again = Bernoulli(0.5, 32, seed=7)
    for step in reversed(range(1, 51)):
        assert again.num_online(step) == draws[step - 1]
    assert draws != online(Bernoulli(0.5, 32, seed=8), 50)


def test_the_first_step_draws_from_stream_zero() -> None:
    """A run that began when steps counted from 0 inside the mixture resumes with the same coins."""
    coins = random.Random(derive_seed(7, "mixture", 0))
    heads = sum(coins.random() < 0.5 for _ in range(32))
    assert Bernoulli(0.5, 32, seed=7).num_online(1) == heads
    coins = random.Random(derive_seed(7, "online_bdhs", 0))
    heads_of_bdhs = sum(coins.random() < 0.25 for _ in range(heads))
    assert Bernoulli(0.5, 32, 7, 0.25).num_online_bdhs(1) == heads_of_bdhs


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_bernoulli_statistics(fraction: float) -> None:
    """n = 1000·32 coins: mean np, standard deviation sqrt(np(1-p)); 5 of them. Variance per batch 32p(1-p) ± 25 %."""
    draws = online(Bernoulli(fraction, 32, 0), 1000)
    deviation = math.sqrt(32_000 * fraction * (1 - fraction))
    assert abs(sum(draws) - 32_000 * fraction) < 5 * deviation
    mean = sum(draws) / 1000
    variance = sum((draw - mean) ** 2 for draw in draws) / 999
    assert variance == pytest.approx(32 * fraction * (1 - fraction), rel=0.25)


@pytest.mark.parametrize("kind", ["bernoulli", "ratio"])
@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (1.0, 32)])
def test_pure_mixtures(kind: str, fraction: float, expected: int) -> None:
    config = MixtureConfig(kind=kind, online_fraction=fraction)
    mixture = build_mixture(config, BATCHES, 0)
    assert online(mixture, 100) == [expected] * 100


@pytest.mark.parametrize("fraction", [0.1, 0.3, 1 / 3, 0.5, 0.7])
def test_ratio_carries_what_does_not_divide(fraction: float) -> None:
    """Batches of 7: after n steps floor(7·n·fraction) online pairs were asked for, never off by a whole pair."""
    draws = online(Ratio(fraction, 7), 3000)
    assert set(draws) <= {math.floor(7 * fraction), math.ceil(7 * fraction)}
    for steps in (1, 10, 3000):
        assert abs(sum(draws[:steps]) - steps * 7 * fraction) < 1


@pytest.mark.parametrize("kind", ["bernoulli", "ratio", "schedule"])
def test_the_share_of_online_bdhs_leaves_the_number_of_online_pairs_alone(
    kind: str,
) -> None:
    plain_config = MixtureConfig(kind=kind, online_fraction=0.6)
    mixed_config = plain_config.model_copy(update={"online_bdhs_fraction": 0.3})
    plain = build_mixture(plain_config, BATCHES, 3)
    mixed = build_mixture(mixed_config, BATCHES, 3)
    for step in range(1, 51):
        num_online = mixed.num_online(step)
        assert num_online == plain.num_online(step)
        assert plain.num_online_bdhs(step) == 0
        assert 0 <= mixed.num_online_bdhs(step) <= num_online


def test_online_bdhs_statistics() -> None:
    """1000·32 slots, online with 0.6 and then BDHS with 0.3: mean 32000·0.18 = 5760, σ = sqrt(32000·0.18·0.82) = 69."""
    total = sum(bdhs(Bernoulli(0.6, 32, 0, 0.3), 1000))
    assert abs(total - 5760) < 5 * 69
    whole = Bernoulli(0.6, 32, 0, 1.0)
    assert bdhs(whole, 50) == online(whole, 50)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 40))
def test_ratio_carries_online_bdhs_as_well(
    fraction: float, share: float, batch: int
) -> None:
    mixture = Ratio(fraction, batch, share)
    num_online = online(mixture, 60)
    num_bdhs = bdhs(mixture, 60)
    for count, total in zip(num_bdhs, num_online, strict=True):
        assert 0 <= count <= total
    assert abs(sum(num_bdhs) - sum(num_online) * share) < 1 + 1e-3


def test_a_schedule_moves_the_share_by_hand() -> None:
    """Batches of 8 in 5 steps from 0 to 1: shares 0, 1/4, 1/2, 3/4, 1 give 0, 2, 4, 6, 8; after the last it stays."""
    config = MixtureConfig(kind="schedule", online_fraction=1)
    up = build_mixture(config, Learner(global_batch=8, num_steps=5), 0)
    assert online(up, 7) == [0, 2, 4, 6, 8, 8, 8]
    down = Schedule(0.25, 8, 0.5, start_fraction=0.75, num_steps=3)
    assert online(down, 4) == [6, 4, 2, 2]
    assert bdhs(down, 4) == [3, 2, 1, 1]
    assert Schedule(0.5, 8, start_fraction=0, num_steps=1).num_online(1) == 0


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 40), st.integers(1, 60))
def test_a_schedule_carries_what_does_not_divide(
    start: float, end: float, batch: int, num_steps: int
) -> None:
    mixture = Schedule(end, batch, start_fraction=start, num_steps=num_steps)
    asked_for, exact = 0, 0.0
    for step in range(1, num_steps + 1):
        moved = min(1, (step - 1) / max(1, num_steps - 1))
        count = mixture.num_online(step)
        assert 0 <= count <= batch
        asked_for += count
        exact += batch * (start + (end - start) * moved)
        # The config's shares are rounded to a millionth.
        assert abs(asked_for - exact) < 1 + 1e-3 * num_steps


def test_counts_by_source() -> None:
    """Ratio 0.5 of 8 is 4 online; a quarter of them is 1."""
    both = online_counts(Ratio(0.5, 8, 0.25), 1, ("online", "online_bdhs"))
    assert both == {"online": 3, "online_bdhs": 1}
    assert online_counts(Ratio(0.5, 8), 1, ("online",)) == {"online": 4}
    assert online_counts(Ratio(0.5, 8, 1), 1, ("online_bdhs",)) == {"online_bdhs": 4}

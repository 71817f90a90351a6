from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import Learner
from common.config import Mixture as MixtureConfig
from cluster.mixture import Bernoulli, Ratio, Schedule, build_mixture, online_counts

BATCHES = Learner(global_batch=32, num_steps=50)


def test_bernoulli_is_a_function_of_seed_and_step() -> None:
    first, again, other = (
        Bernoulli(0.5, 32, 7),
        Bernoulli(0.5, 32, 7),
        Bernoulli(0.5, 32, 8),
    )
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
    mixture = build_mixture(
        MixtureConfig(kind=kind, online_fraction=fraction), BATCHES, 0
    )
    assert {mixture.num_online(step) for step in range(100)} == {expected}


@pytest.mark.parametrize("fraction", [0.1, 0.3, 1 / 3, 0.5, 0.7])
def test_ratio_carries_what_does_not_divide(fraction: float) -> None:
    """Batches of 7: after n steps floor(7·n·fraction) online pairs were asked for, never off by a whole pair."""
    mixture = Ratio(fraction, 7)
    draws = [mixture.num_online(step) for step in range(3000)]
    assert set(draws) <= {math.floor(7 * fraction), math.ceil(7 * fraction)}
    for steps in (1, 10, 3000):
        assert abs(sum(draws[:steps]) - steps * 7 * fraction) < 1


def test_the_share_of_online_bdhs_leaves_the_number_of_online_pairs_alone() -> None:
    for kind in ("bernoulli", "ratio", "schedule"):
        plain, mixed = (
            build_mixture(
                MixtureConfig(
                    kind=kind, online_fraction=0.6, online_bdhs_fraction=share
                ),
                BATCHES,
                3,
            )  # type: ignore[arg-type]
            for share in (0.0, 0.3)
        )
        for step in range(50):
            assert mixed.num_online(step) == plain.num_online(step)
            assert (
                0
                == plain.num_online_bdhs(step)
                <= mixed.num_online_bdhs(step)
                <= mixed.num_online(step)
            )


def test_online_bdhs_statistics() -> None:
    """1000·32 slots, online with 0.6 and then BDHS with 0.3: mean 32000·0.18 = 5760, σ = sqrt(32000·0.18·0.82) = 69."""
    mixture = Bernoulli(0.6, 32, 0, 0.3)
    assert (
        abs(sum(mixture.num_online_bdhs(step) for step in range(1000)) - 5760) < 5 * 69
    )
    whole = Bernoulli(0.6, 32, 0, 1.0)
    assert all(
        whole.num_online_bdhs(step) == whole.num_online(step) for step in range(50)
    )


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 40))
def test_ratio_carries_online_bdhs_as_well(
    online: float, share: float, batch: int
) -> None:
    mixture = Ratio(online, batch, share)
    counts = [
        (mixture.num_online(step), mixture.num_online_bdhs(step)) for step in range(60)
    ]
    assert all(0 <= bdhs <= total for total, bdhs in counts)
    assert (
        abs(sum(bdhs for _, bdhs in counts) - sum(total for total, _ in counts) * share)
        < 1 + 1e-3
    )


def test_a_schedule_moves_the_share_by_hand() -> None:
    """Batches of 8 in 5 steps from 0 to 1: shares 0, 1/4, 1/2, 3/4, 1 give 0, 2, 4, 6, 8; after the last it stays."""
    mixture = build_mixture(
        MixtureConfig(kind="schedule", online_fraction=1),
        Learner(global_batch=8, num_steps=5),
        0,
    )
    assert [mixture.num_online(step) for step in range(7)] == [0, 2, 4, 6, 8, 8, 8]
    down = Schedule(0.25, 8, 0.5, start_fraction=0.75, num_steps=3)
    assert [down.num_online(step) for step in range(4)] == [6, 4, 2, 2]
    assert [down.num_online_bdhs(step) for step in range(4)] == [3, 2, 1, 1]
    assert Schedule(0.5, 8, start_fraction=0, num_steps=1).num_online(0) == 0


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 40), st.integers(1, 60))
def test_a_schedule_carries_what_does_not_divide(
    start: float, end: float, batch: int, num_steps: int
) -> None:
    mixture = Schedule(end, batch, start_fraction=start, num_steps=num_steps)
    shares = [
        start + (end - start) * min(1, step / max(1, num_steps - 1))
        for step in range(num_steps)
    ]
    counts = [mixture.num_online(step) for step in range(num_steps)]
    assert all(0 <= count <= batch for count in counts)
    for step in range(num_steps):
        assert (
            abs(sum(counts[: step + 1]) - batch * sum(shares[: step + 1]))
            < 1 + 1e-3 * num_steps
        )


def test_counts_by_source() -> None:
    """Ratio 0.5 of 8 is 4 online; a quarter of them is 1."""
    mixture = Ratio(0.5, 8, 0.25)
    assert online_counts(mixture, 0, ("online", "online_bdhs")) == {
        "online": 3,
        "online_bdhs": 1,
    }
    assert online_counts(Ratio(0.5, 8), 0, ("online",)) == {"online": 4}
    assert online_counts(Ratio(0.5, 8, 1), 0, ("online_bdhs",)) == {"online_bdhs": 4}

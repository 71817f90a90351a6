"""What an offline pair is worth, by hand and as properties, and how a draw by value goes on."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cluster.sampling.offline_pool import OfflineState
from cluster.sampling.value import FLOOR, Floats, probabilities, values
from cluster.sampling.value_pool import ValuePool, ValueState, offline_metrics
from common.data.records_on_disk import RecordsOnDisk, id_key
from common.errors import UserError
from common.records import Dropped, PreferencePair, Prompt, Response

NAMES = [f"pair {number}" for number in range(12)]
PAIRS = [
    PreferencePair(name, Prompt(name, (), ()), Response("a"), Response("b"), "bdhs")
    for name in NAMES
]
LN_3 = math.log(3)

margins_strategy = st.floats(-1e6, 1e6)
ages_strategy = st.one_of(st.floats(0, 1e6), st.just(math.inf))
pair_strategy = st.tuples(margins_strategy, ages_strategy, st.integers(0, 1000))


def numbers(*values: float) -> Floats:
    return np.asarray(values, dtype=float)


def likely(pairs: Sequence[tuple[float, float, int]]) -> Floats:
    margins, ages, uses = np.asarray(pairs, dtype=float).T
    return probabilities(values(margins, ages, uses))


def test_values_and_probabilities_by_hand() -> None:
    """σ(0) = 1/2 as never drawn; σ(-ln 3) = 1/4 after an epoch; σ(ln 3) = 3/4 after two; one of the batch before."""
    result = values(
        margins=numbers(0, LN_3, -LN_3, -5),
        ages=numbers(math.inf, 1, 2, 0),
        uses=numbers(0, 1, 2, 1),
    )
    assert result == pytest.approx([1 / 2, 1 / 16, 3 / 16, 0])
    # Of 3/4 together: 2/3, 1/12, 1/4, 0; nine tenths of these, and a tenth of 1/4.
    assert FLOOR == 0.1
    assert probabilities(result) == pytest.approx([0.625, 0.1, 0.25, 0.025])


def test_all_are_alike_where_none_has_a_value() -> None:
    """A set of one batch."""
    result = probabilities(values(numbers(1, -1), numbers(0, 0), numbers(3, 1)))
    assert result == pytest.approx([0.5, 0.5])


@given(st.lists(pair_strategy, min_size=1, max_size=30))
def test_every_pair_has_its_floor(pairs: list[tuple[float, float, int]]) -> None:
    result = likely(pairs)
    assert result.sum() == pytest.approx(1)
    assert (result >= FLOOR / len(pairs) * (1 - 1e-9)).all()


@given(pair_strategy, margins_strategy)
def test_a_smaller_margin_is_worth_as_much_or_more(
    pair: tuple[float, float, int], other: float
) -> None:
    margin, age, uses = pair
    low, high = sorted([margin, other])
    both = values(numbers(low, high), numbers(age, age), numbers(uses, uses))
    assert both[0] >= both[1]
    # None that was drawn is worth more than one that was not.
    used = values(numbers(low), numbers(age), numbers(uses + 1))
    assert used[0] <= values(numbers(0), numbers(math.inf), numbers(0))[0]


@given(st.lists(pair_strategy, min_size=1, max_size=30), st.randoms())
def test_the_order_of_pairs_changes_nothing(
    pairs: list[tuple[float, float, int]], rng: random.Random
) -> None:
    order = list(range(len(pairs)))
    rng.shuffle(order)
    shuffled = likely([pairs[index] for index in order])
    assert shuffled == pytest.approx(likely(pairs)[order])


# The pool.


def pool_of(
    pairs: Sequence[PreferencePair] = PAIRS,
    seed: int = 0,
    state: ValueState | None = None,
) -> ValuePool:
    size = OfflineState(len(pairs))
    return ValuePool(pairs, seed, size, state or ValueState())


def taken(pool: ValuePool, num: int, margin_of: dict[str, float]) -> list[str]:
    """A batch, which the learner then trains on."""
    ids = [pair.id for pair in pool.take(num, [])]
    pool.note({name: margin_of[name] for name in ids})
    return ids


MARGINS = {name: float(number - 6) for number, name in enumerate(NAMES)}


def test_a_draw_is_in_proportion_to_the_probabilities() -> None:
    """The first of a draw, for 4,000 seeds; standard error of a share below 0.008."""
    records = {}
    for number, name in enumerate(NAMES):
        if number % 3:
            records[id_key(name)] = (MARGINS[name], number % 3, number * 2)
    expected_values = []
    for number, name in enumerate(NAMES):
        age = (24 - number * 2) / 12 if number % 3 else math.inf
        margin = MARGINS[name] if number % 3 else 0.0
        expected_values.append((margin, age, number % 3))
    counts: Counter[str] = Counter()
    for seed in range(4000):
        state = ValueState(num_drawn=24, records=dict(records))
        counts[pool_of(seed=seed, state=state).take(1, [])[0].id] += 1
    shares = [counts[name] / 4000 for name in NAMES]
    assert shares == pytest.approx(likely(expected_values), abs=0.03)


def test_no_pair_comes_twice_in_a_batch_and_all_are_seen() -> None:
    pool = pool_of()
    seen: Counter[str] = Counter()
    for _ in range(40):
        batch = taken(pool, 5, MARGINS)
        assert len(set(batch)) == 5
        seen.update(batch)
    assert set(seen) == set(NAMES)
    # Where the policy prefers the wrong answer more often than where it is sure of the right one.
    assert seen[NAMES[0]] + seen[NAMES[1]] > seen[NAMES[-1]] + seen[NAMES[-2]]


@pytest.mark.parametrize("num_before", [0, 1, 7])
def test_a_resumed_pool_draws_what_it_would_have_drawn(num_before: int) -> None:
    adapter = TypeAdapter(ValueState)
    state = ValueState()
    pool = pool_of(state=state)
    for _ in range(num_before):
        taken(pool, 4, MARGINS)
    saved = adapter.validate_python(json.loads(adapter.dump_json(state)))
    # The set may have another order by then.
    resumed = pool_of(PAIRS[::-1], state=saved)
    for _ in range(10):
        assert taken(resumed, 3, MARGINS) == taken(pool, 3, MARGINS)
    assert saved == state


def test_a_draw_can_be_foreseen_before_the_margins_of_the_last_one() -> None:
    pool = pool_of()
    for _ in range(20):
        ids = [pair.id for pair in pool.take(3, [])]
        foreseen = pool.foresee(4)
        pool.note({name: MARGINS[name] for name in ids})
        assert pool.foresee(4) == foreseen == pool.take(4, [])


def test_draws_are_seeded() -> None:
    first = pool_of(seed=1).take(12, [])
    assert pool_of(seed=1).take(12, []) == first
    assert pool_of(seed=2).take(12, []) != first


def test_pairs_that_cannot_be_used_give_their_places_to_others() -> None:
    def read(number: int) -> PreferencePair | Dropped:
        if number % 2:
            return Dropped(NAMES[number], "bad_image", "gone")
        return PAIRS[number]

    keys = np.asarray([id_key(name) for name in NAMES])
    pool = pool_of(RecordsOnDisk(read, np.arange(12), keys))
    dropped: list[Dropped] = []
    batch = pool.take(6, dropped)
    assert {pair.id for pair in batch} == set(NAMES[::2])
    assert {row.id for row in dropped} <= set(NAMES[1::2])
    with pytest.raises(UserError, match="at least 7 usable offline pairs"):
        pool.take(7, [])


def test_what_is_too_small_is_refused() -> None:
    assert pool_of([]).take(0, []) == pool_of([]).foresee(3) == []
    with pytest.raises(UserError, match="got an empty set"):
        pool_of([]).take(1, [])
    with pytest.raises(UserError, match="as many as a batch takes, got 12; generate"):
        pool_of().take(13, [])
    with pytest.raises(UserError, match="expected the 12 pairs this run began with"):
        ValuePool(PAIRS[1:], 0, OfflineState(12), ValueState())


def test_a_margin_that_is_no_number_is_not_remembered() -> None:
    state = ValueState()
    pool = pool_of(state=state)
    (pair,) = pool.take(1, [])
    pool.note({pair.id: math.nan})
    assert state.records[id_key(pair.id)] == (0.0, 1, 1)


def test_metrics_of_a_draw() -> None:
    state = ValueState()
    assert offline_metrics(state) == {}
    pool = pool_of(state=state)
    taken(pool, 6, MARGINS)
    assert offline_metrics(state) == {
        "offline/seen": 6,
        "offline/uses": 1,
        "offline/effective": pytest.approx(12),
    }

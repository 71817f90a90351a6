from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest

import learner.batch.plan
from common.data.images import ImageStore
from learner.batch.collate import Collator
from learner.batch.plan import BatchPlan, MicroSize, PairSize, plan_batch
from tests.learner.helpers import make_pairs, text_prompt


def plans(
    pairs: list, collator: Collator, micro_batch: int, world_size: int, monkeypatch
) -> list[BatchPlan]:
    """The plans of all ranks, each in a thread of its own; they exchange their facts through a barrier."""
    exchanges: dict[int, list] = {}
    local, barrier = threading.local(), Barrier(world_size, timeout=60)

    def exchange(facts_of_rank: object, _: int) -> list:
        # The first call of a rank meets the first calls of the others, and so on.
        local.calls = getattr(local, "calls", 0) + 1
        facts = exchanges.setdefault(local.calls, [])
        facts.append(facts_of_rank)
        barrier.wait()
        return facts

    monkeypatch.setattr(learner.batch.plan, "gather", exchange)
    size = MicroSize(micro_batch)

    def plan(rank: int) -> BatchPlan:
        return plan_batch(pairs, collator, size, rank, world_size)

    with ThreadPoolExecutor(world_size) as threads:
        return list(threads.map(plan, range(world_size)))


def ids(plan: BatchPlan) -> list[list[tuple[str, int]]]:
    """Id and weight of every pair of each micro-batch; a filler has weight 0."""
    batches = []
    for micro_batch in plan.micro_batches:
        counted = [(pair.pair.id, 1) for pair in micro_batch.counted]
        fillers = micro_batch.pairs[len(counted) :]
        batches.append(counted + [(pair.pair.id, 0) for pair in fillers])
    return batches


def test_one_rank(collator: Collator, store: ImageStore) -> None:
    plan = plan_batch(make_pairs(store, 5), collator, MicroSize(2), 0, 1)
    assert ids(plan) == [
        [("pair-0", 1), ("pair-1", 1)],
        [("pair-2", 1), ("pair-3", 1)],
        [("pair-4", 1)],
    ]
    assert len(plan.pairs) == 5


def test_ranks_run_equally_many_micro_batches(
    collator: Collator, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs 1 and 3 are refused: rank 1 has none left, and runs fillers of weight 0 beside rank 0's two batches."""
    pairs = make_pairs(store, 4)
    for index in (1, 3):
        pairs[index] = replace(pairs[index], rejected=pairs[index].chosen)
    first, second = plans(pairs, collator, 1, 2, monkeypatch)
    assert ids(first) == [[("pair-0", 1)], [("pair-2", 1)]]
    assert ids(second) == [[("pair-0", 0)], [("pair-0", 0)]]
    assert len(first.pairs) == len(second.pairs) == 2
    for plan in (first, second):
        assert [drop.id for drop in plan.dropped] == ["pair-1", "pair-3"]


def test_the_plan_carries_the_order_of_gathered_rows(
    collator: Collator, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pair 2 is refused: rank 0 has pairs 0 and 4, rank 1 has 1 and 3; rows go rank by rank."""
    pairs = make_pairs(store, 5)
    pairs[2] = replace(pairs[2], rejected=pairs[2].chosen)
    for plan in plans(pairs, collator, 2, 2, monkeypatch):
        assert [pair.id[-1] for pair in plan.pairs] == ["0", "1", "3", "4"]
        assert [pair.id[-1] for pair in plan.rows] == ["0", "4", "1", "3"]


def test_every_micro_batch_has_media_if_any_has(
    collator: Collator, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = make_pairs(store, 4)
    pairs[1] = replace(pairs[1], prompt=text_prompt())
    pairs[3] = replace(pairs[3], prompt=text_prompt())
    first, second = plans(pairs, collator, 2, 2, monkeypatch)
    assert ids(first) == [[("pair-0", 1), ("pair-2", 1)]]
    assert ids(second) == [[("pair-1", 1), ("pair-3", 1), ("pair-0", 0)]]


def test_cuts_by_tokens() -> None:
    """Limit 10: 4+5 fit, 7 is alone, 12 is too large for any limit and goes alone, 1+9 fit exactly."""
    sizes = [4, 5, 7, 12, 1, 9]
    pairs = [PairSize(key, 1, size - 1) for key, size in enumerate(sizes)]
    cuts = MicroSize(2, 10).cut(pairs)
    assert [sizes[cut] for cut in cuts] == [[4, 5], [7], [12], [1, 9]]
    assert [sizes[cut] for cut in MicroSize(4).cut(pairs)] == [[4, 5, 7, 12], [1, 9]]
    assert MicroSize(2, 10).cut([]) == []


def test_a_cut_counts_a_prompt_once() -> None:
    """2,900 + 5 · 200 = 3,900 of 4,096; the next cut has 2,900 + 3 · 200, and 600 are too many for another prompt."""
    pairs = [PairSize(1, 2900, 200)] * 8 + [
        PairSize(2, 400, 200),
        PairSize(1, 2900, 200),
    ]
    assert MicroSize(1, 4096).cut(pairs) == [slice(0, 5), slice(5, 8), slice(8, 10)]
    assert MicroSize(1, 4100).cut(pairs) == [slice(0, 6), slice(6, 10)]

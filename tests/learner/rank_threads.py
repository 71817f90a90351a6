"""Ranks as threads of one process, for the code that plans a batch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

import learner.batch.plan
from common.records import PreferencePair
from learner.batch.collate import Collator
from learner.batch.plan import BatchPlan, MicroSize, plan_batch


def plans_of_ranks(
    pairs: list[PreferencePair],
    collators: Sequence[Collator],
    micro_batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> list[BatchPlan]:
    """The plans of all ranks, each in a thread of its own with its collator; they exchange facts through a barrier."""
    world_size = len(collators)
    exchanges: dict[int, dict[int, Any]] = {}
    local = threading.local()
    barrier = Barrier(world_size, timeout=60)

    def exchange(value: Any, _: int) -> list[Any]:
        # The first call of a rank meets the first calls of the others, and so on.
        values = exchanges.setdefault(local.num_calls, {})
        local.num_calls += 1
        values[local.rank] = value
        barrier.wait()
        return [values[rank] for rank in range(world_size)]

    monkeypatch.setattr(learner.batch.plan, "gather", exchange)

    def plan(rank: int) -> BatchPlan:
        local.rank, local.num_calls = rank, 0
        size = MicroSize(micro_batch)
        return plan_batch(pairs, collators[rank], size, rank, world_size)

    with ThreadPoolExecutor(world_size) as threads:
        return list(threads.map(plan, range(world_size)))

"""The norm of a change: the formula by hand, at any size, and at what float32 would lose."""

from __future__ import annotations

import math
import threading

import pytest
import torch

from learner.change_norm import CHUNK_NUMEL, MAX_THREADS, Change, change_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_formula_over_all_tensors(dtype: torch.dtype) -> None:
    """Sizes: less than a chunk, several chunks and a rest, none, a single value."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    squares = 0.0
    for shape in ((3, 5), (2 * CHUNK_NUMEL + 7,), (0,), ()):
        before = torch.randn(shape, generator=generator).to(dtype)
        after = torch.randn(shape, generator=generator).to(dtype)
        pairs.append((after, before))
        squares += float((after.double() - before.double()).square().sum())
    assert change_norm(pairs) == pytest.approx(math.sqrt(squares), rel=1e-6)


def test_two_known_tensors() -> None:
    """|(3, 0)| and |(0, 4)|: sqrt(9 + 16) = 5."""
    first = (torch.tensor([4.0, 1.0]), torch.tensor([1.0, 1.0]))
    second = (torch.tensor([2.0, 2.0]), torch.tensor([2.0, -2.0]))
    assert change_norm([first, second]) == 5


def test_zero_means_that_nothing_has_changed() -> None:
    weight = torch.ones(10)
    assert change_norm([(weight, weight), (weight.clone(), weight)]) == 0
    # Its square, 1e-60, is zero in float32.
    small = torch.full((1,), 1e-30)
    assert change_norm([(small, torch.zeros(1))]) == pytest.approx(1e-30)


def test_what_is_not_finite_shows() -> None:
    weight = torch.ones(10)
    assert math.isnan(change_norm([(weight * math.nan, weight)]))
    assert math.isinf(change_norm([(weight * math.inf, weight)]))


def test_many_tensors_share_a_few_threads() -> None:
    before = set(threading.enumerate())
    started: set[threading.Thread] = set()
    with Change() as change:
        for _ in range(50):
            change.add(torch.ones(3 * CHUNK_NUMEL), torch.zeros(3 * CHUNK_NUMEL))
            started |= set(threading.enumerate()) - before
    assert 0 < len(started) <= MAX_THREADS
    assert change.norm == pytest.approx(math.sqrt(50 * 3 * CHUNK_NUMEL))
    assert not set(threading.enumerate()) - before

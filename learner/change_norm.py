"""How far weights are from those of the start policy, at about the speed of the memory that they are read from."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from concurrent.futures import Executor, ThreadPoolExecutor

import torch
from torch import Tensor

MAX_THREADS = 8
CHUNK_NUMEL = 1 << 15
"""Values at a time: they stay in a core's cache, and torch starts no threads of its own for so few."""
GPU_CHUNK_NUMEL = 1 << 24
"""On a GPU few large pieces are faster."""


class Change:
    """The L2 norm of the difference over all tensors that it was told of; a context, at whose end its threads end.

    It is 0 only when none has changed, and NaN when a value is.
    """

    def __init__(self) -> None:
        self._num_threads = min(MAX_THREADS, len(os.sched_getaffinity(0)))
        # They start with the first tensor.
        self._threads = ThreadPoolExecutor(self._num_threads)
        self._squares: list[float] = []

    def __enter__(self) -> Change:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def add(self, after: Tensor, before: Tensor) -> None:
        """A weight now and at the start, of one shape."""
        # With LoRA all layers without an adapter: nothing is read.
        if after is not before:
            squares = _squares(after, before, self._threads, self._num_threads)
            self._squares += squares

    @property
    def norm(self) -> float:
        return math.sqrt(math.fsum(self._squares))


def change_norm(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The norm of `Change` over pairs of weights now and at the start; read once, a pair at a time."""
    with Change() as change:
        for after, before in pairs:
            change.add(after, before)
        return change.norm


def _squares(
    after: Tensor,
    before: Tensor,
    threads: Executor,
    num_threads: int,
) -> list[float]:
    """Sums of squared differences of parts of two tensors."""
    assert after.shape == before.shape, "a weight keeps its shape"
    part = max(CHUNK_NUMEL, -(-after.numel() // num_threads))
    new_parts = after.reshape(-1).split(part)
    old_parts = before.to(after.device).reshape(-1).split(part)
    return list(threads.map(_squared_distance, new_parts, old_parts))


def _squared_distance(after: Tensor, before: Tensor) -> float:
    squares: list[float] = []
    size = CHUNK_NUMEL if after.device.type == "cpu" else GPU_CHUNK_NUMEL
    new_chunks = after.split(size)
    old_chunks = before.split(size)
    for new, old in zip(new_chunks, old_chunks, strict=True):
        difference = new.float() - old.float()
        # In float64: the squares of small changes are zero in float32.
        norm = torch.linalg.vector_norm(difference, dtype=torch.float64)
        squares.append(norm.item() ** 2)
    return math.fsum(squares)

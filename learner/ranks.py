"""Small exchanges between the learner's ranks: Python objects, gathered on every rank in rank order."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gather(value: T, world_size: int) -> list[T]:
    """Every rank's value, on every rank."""
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    dist.all_gather_object(values, value)
    return values

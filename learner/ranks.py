"""How the learner's ranks find each other, and small exchanges between them."""

from __future__ import annotations

import socket
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


def free_address() -> tuple[str, int]:
    """This node's address as other nodes see it (loopback when it has no route out), and a port that is free now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # A documentation address (RFC 5737): connecting a datagram socket picks the route and sends nothing.
            probe.connect(("192.0.2.1", 9))
            address = str(probe.getsockname()[0])
        except OSError:
            address = "127.0.0.1"
    with socket.socket() as listener:
        listener.bind((address, 0))
        return address, int(listener.getsockname()[1])

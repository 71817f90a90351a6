"""How the learner's ranks find each other, and small exchanges between them."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from common.errors import UserError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)


def join(backend: str, rank: int, world_size: int, address: str, port: int) -> None:
    """Make this process a member of the process group; rank 0 listens at the address (UserError: they do not meet)."""
    if dist.is_initialized():
        raise RuntimeError(
            "this process already belongs to a process group; close the other engine first"
        )
    try:
        store = (
            dist.HashStore()  # type: ignore[attr-defined]
            if world_size == 1
            else dist.TCPStore(  # type: ignore[attr-defined]
                address, port, world_size, is_master=rank == 0, timeout=TIMEOUT
            )
        )
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"learner rank {rank}: expected {world_size} ranks to meet at {address}:{port}, got: {error}; "
            "check that the address can be reached and the port is free"
        ) from error


def most(number: int, device: torch.device) -> int:
    """The largest of all ranks' numbers (collective)."""
    value = torch.tensor(number, device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


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

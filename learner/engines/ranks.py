"""How the learner's ranks meet in a process group, and small exchanges between them."""

from __future__ import annotations

import ipaddress
import os
import socket
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from common.errors import UserError
from common.machine.address import LOOPBACK, interface_of, node_address

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)
"""How long ranks wait for each other, at the start and in every exchange."""

_reserved: dict[tuple[str, int], socket.socket] = {}
"""What listens at addresses that `reserved_address` has given out."""


def join(
    backend: str,
    rank: int,
    world_size: int,
    address: str,
    port: int,
) -> None:
    """Make this process a member of the process group; rank 0 listens at the address.

    Raises:
        UserError: the ranks do not meet in time.
        RuntimeError: this process is a member already.
    """
    if dist.is_initialized():
        raise RuntimeError(
            "this process already belongs to a process group; close the other engine first"
        )
    is_local = ipaddress.ip_address(address).is_loopback
    interface = interface_of(LOOPBACK if is_local else node_address())
    if interface is not None:
        # gloo would listen at the address of this machine's name, which may be one that no other node reaches.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    try:
        store = meeting_place(rank, world_size, address, port)
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=TIMEOUT,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"learner rank {rank}: expected {world_size} ranks to meet at {address}:{port}, got: {error}; "
            "check that the address can be reached and the port is free"
        ) from error


def meeting_place(
    rank: int,
    world_size: int,
    address: str,
    port: int,
) -> Any:
    """Where the ranks find each other."""
    if world_size == 1:
        # A single rank needs no port, which somebody else could take.
        return dist.HashStore()  # type: ignore[attr-defined]
    return dist.TCPStore(  # type: ignore[attr-defined]
        address,
        port,
        world_size,
        is_master=rank == 0,
        timeout=TIMEOUT,
        master_listen_fd=_listener(address, port) if rank == 0 else None,
    )


def reserved_address(address: str = "") -> tuple[str, int]:
    """An address, else this node's as other nodes see it, and a port that nobody takes before `join` needs it."""
    listener = socket.create_server((address or node_address(), 0))
    host, port = listener.getsockname()
    _reserved[host, port] = listener
    return host, port


def _listener(address: str, port: int) -> int:
    """A socket that listens at this address alone: torch's own would at all of this machine's."""
    listener = _reserved.pop((address, port), None)
    if listener is None:
        listener = socket.create_server((address, port))
    return listener.detach()


def most(number: int, device: torch.device) -> int:
    """The largest of all ranks' numbers; every rank must call it."""
    value = torch.tensor(number, device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def gather(value: T, world_size: int) -> list[T]:
    """Every rank's value, in the order of ranks, on every rank; every rank must call it."""
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    dist.all_gather_object(values, value)
    return values

"""Where learner and engines meet for a push: a store that the learner keeps, and a group that lives for one push.

A group ends with its push, so that nobody has to know who died since the last one, and whoever is restarted can join
the next. The store listens on the address that the engines need and no other; what travels over it are short texts.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from common.push.waiting import BROKEN

SENDER = 0
"""Rank of the learner in the group of a push."""
READY = "ready"
"""The key that the learner sets when its first bucket is full: engines sample until then."""


class PushBroken(RuntimeError):
    """The group of a push fell apart, or never came together; whoever says it need not be the one to blame."""


class Unreachable(RuntimeError):
    """This process cannot reach the learner at all."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the learner's first rank waits for the members of its pushes.

    Attributes:
        device: of its weights, `cpu` or `cuda`.
        memory: `memory_id` of its process.
    """

    address: str
    port: int
    device: str
    memory: str


@dataclass(frozen=True, slots=True)
class EngineSeat:
    """What an engine says of itself before a push.

    Attributes:
        network: `network_id` of its node.
        device: of its weights, `cpu` or `cuda`.
        num_workers: processes that hold parts of its weights.
        memory: `memory_id` of these.
    """

    network: str
    device: str
    num_workers: int
    memory: str


@dataclass(frozen=True, slots=True)
class Meeting:
    """One push, as all its members know it.

    Attributes:
        address, port: of the learner's store.
        key: tells this push from others in the store.
        backend: `nccl`, `gloo`, `shm` or `ipc`.
        num_members: the learner and every worker of every engine.
        timeout_s: for coming together, and for any one bucket.
    """

    address: str
    port: int
    key: str
    backend: str
    num_members: int
    timeout_s: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a way that carries no classes."""
        return asdict(self)

    @property
    def limit(self) -> timedelta:
        """`timeout_s` as torch takes it."""
        return timedelta(seconds=self.timeout_s)

    def store(self) -> Any:
        """A connection to the learner's store, for keys of this push.

        Raises:
            Unreachable: nobody answers at the address; the message names both ends.
        """
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                self.address,
                self.port,
                is_master=False,
                wait_for_workers=False,
                timeout=self.limit,
            )
        except RuntimeError as error:
            raise Unreachable(
                f"engine at {address_towards(self.address)}: expected to reach the learner at {self.address}:"
                f"{self.port} within {self.timeout_s:g} s, got none; open TCP between the two, or set "
                "weights.transport = object_store"
            ) from error
        return dist.PrefixStore(self.key, store)  # type: ignore[attr-defined]


class MeetingPlace:
    """The learner's store, which listens as long as this object lives.

    Args:
        address: of this machine, at which the engines reach it.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family)
        # Bound here, since a store would listen on every address of the machine.
        listener.bind((address, 0))
        listener.listen()
        self.port = int(listener.getsockname()[1])
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            address,
            self.port,
            is_master=True,
            wait_for_workers=False,
            # The store closes it.
            master_listen_fd=listener.detach(),
        )

    def store(self, meeting: Meeting) -> Any:
        """For the keys of one push."""
        return dist.PrefixStore(meeting.key, self._store)  # type: ignore[attr-defined]


class Sent(Protocol):
    """A bucket on its way."""

    def wait(self) -> object:
        """Return when the buffer may be used again, or is filled."""
        ...


class Group(Protocol):
    """The members of a push. The first one's buffers come to all others."""

    device: torch.device

    def broadcast(self, buffer: Tensor) -> Sent:
        """Begin to send the buffer, or to fill it (PushBroken from `wait`)."""
        ...

    def finish(self) -> None:
        """As a receiver say that every bucket is here; as a sender wait until all receivers have (PushBroken)."""
        ...

    def leave(self, broken: str = "") -> None:
        """Have no more part in it; a member that leaves before the end says why, and all others then leave too."""
        ...


def join(meeting: Meeting, rank: int, store: Any, device: torch.device) -> Group:
    """Come together with the other members.

    Args:
        store: of `Meeting.store` or `MeetingPlace.store`.
        device: of this member's weights.

    Raises:
        PushBroken: not all came in time.
    """
    if meeting.backend in ("ipc", "shm"):
        from common.push.shared import SharedBuckets

        memory = _shared_memory(meeting, device)
        return SharedBuckets(meeting, rank, store, memory)
    from common.push.collective import Collective

    return Collective(meeting, rank, store, device)


def _shared_memory(meeting: Meeting, device: torch.device) -> Any:
    """A `common.push.shared.Memory`."""
    if meeting.backend == "shm":
        from common.push.host_memory import HostMemory

        return HostMemory()
    from common.push.gpu_memory import GpuMemory

    return GpuMemory(device)


def tell_broken(store: Any, reason: str) -> None:
    """Tell all members of a push that it has fallen apart."""
    # Nobody is left to be told where the learner is gone.
    with suppress(RuntimeError):
        # The first to leave says why; those who leave because of it do not.
        store.compare_set(BROKEN, "", reason)


def bucket_device(meeting: Meeting, device: torch.device) -> torch.device:
    """Where the buckets of a member lie whose weights are on this device."""
    is_on_host = meeting.backend in ("gloo", "shm")
    return torch.device("cpu") if is_on_host else device


def empty_bucket(meeting: Meeting) -> Callable[..., Tensor]:
    """What a sender makes its buckets with, given size, dtype and device."""
    if meeting.backend == "ipc":
        from common.push.gpu_memory import shareable

        return shareable
    if meeting.backend == "shm":
        from common.push.host_memory import shared_bucket

        return shared_bucket
    return torch.empty


def address_towards(address: str) -> str:
    """The address of this machine from which that one is reached; itself where no route is known."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket picks the route and sends nothing.
            probe.connect((address, 9))
            return str(probe.getsockname()[0])
        except OSError:
            return address


def network_id() -> str:
    """Equal for processes that reach each other over loopback: of one machine, and of one namespace there."""
    try:
        return _namespace_id("net")
    except OSError:
        return socket.gethostname()


def memory_id() -> str:
    """Equal for processes that can open each other's memory: of one user in one container; "" where none can."""
    try:
        return f"{_namespace_id('pid')}/{os.geteuid()}"
    except OSError:
        return ""


def _namespace_id(kind: str) -> str:
    """This machine and a namespace of this process there, as Linux counts both (OSError elsewhere)."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns", kind)
    return f"{boot.read_text().strip()}/{namespace.stat().st_ino}"


def meeting_of(plain: Mapping[str, Any]) -> Meeting:
    """What `Meeting.to_json` made."""
    return Meeting(**plain)

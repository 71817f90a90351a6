"""Which sockets processes listen on, read from /proc."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

LISTENS = "0A"
"""The kernel's name of the state."""
LOOPBACK = ("0100007F", "00000000000000000000000001000000")
"""127.0.0.1 and ::1, as the kernel writes them; an IPv6 socket of an IPv4 address ends with that."""


def exposed(pids: Iterable[int]) -> list[str]:
    """`NAME ADDRESS:PORT`, in hexadecimal, of every socket that others than this machine may reach."""
    address_of = dict(_listeners())
    lines = []
    for pid in pids:
        for inode in _sockets_of(pid):
            address = address_of.get(inode, "")
            if address and not address.partition(":")[0].endswith(LOOPBACK):
                lines.append(f"{_name(pid)} {address}")
    return lines


def _listeners() -> Iterator[tuple[str, str]]:
    """Inode and address of every listening socket."""
    for table in ("tcp", "tcp6"):
        for line in (Path("/proc/net") / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS:
                yield fields[9], fields[1]


def _sockets_of(pid: int) -> Iterator[str]:
    """Inodes of the sockets of a process, which may end meanwhile."""
    with suppress(OSError):
        for link in (Path("/proc") / str(pid) / "fd").iterdir():
            with suppress(OSError):
                target = str(link.readlink())
                if target.startswith("socket:["):
                    yield target.removeprefix("socket:[").rstrip("]")


def _name(pid: int) -> str:
    with suppress(OSError):
        return (Path("/proc") / str(pid) / "comm").read_text().strip()
    return "a process that has ended"

"""The ranks meet at one address of the machine, and at no other."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from learner.engines.ranks import meeting_place, reserved_address
from tests.sockets import exposed


def test_rank_0_listens_at_the_address_alone() -> None:
    # Other tests of this process may have left some.
    before = exposed([os.getpid()])
    _, port = reserved_address("127.0.0.1")
    with ThreadPoolExecutor() as pool:
        ranks = [
            pool.submit(meeting_place, rank, 2, "127.0.0.1", port) for rank in (0, 1)
        ]
        first, second = [rank.result() for rank in ranks]
    first.set("word", "said")
    assert second.get("word") == b"said"
    assert exposed([os.getpid()]) == before


def test_a_socket_at_all_addresses_would_be_seen() -> None:
    before = exposed([os.getpid()])
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        (line,) = set(exposed([os.getpid()])) - set(before)
    assert line.endswith(f"00000000:{port:04X}")


def test_a_reserved_port_is_nobody_elses() -> None:
    address, port = reserved_address("127.0.0.1")
    with pytest.raises(OSError, match="in use"):
        socket.create_server((address, port))

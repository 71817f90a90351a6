"""The address under which other nodes reach this one."""

from __future__ import annotations

import pytest

from common.machine.address import LOOPBACK, NODE_ADDRESS, interface_of, node_address
from learner.engines.ranks import reserved_address


def test_the_clusters_address_comes_before_the_route(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a node without a default route, where every look at the routes would give loopback."""
    monkeypatch.setenv(NODE_ADDRESS, "127.0.0.7")
    assert node_address() == "127.0.0.7"
    address, port = reserved_address()
    assert address == "127.0.0.7"
    assert port > 0


def test_an_interface_is_known_by_its_address() -> None:
    assert interface_of(LOOPBACK) == "lo"
    # Of a documentation network (RFC 5737): no machine has it.
    assert interface_of("192.0.2.7") is None

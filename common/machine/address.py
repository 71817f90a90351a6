"""Under which address the other nodes of a run reach this one."""

from __future__ import annotations

import os
import socket

LOOPBACK = "127.0.0.1"
NODE_ADDRESS = "SIGHTLINE_NODE_ADDRESS"
"""The variable of an actor that holds what its cluster knows its node by."""


def node_address() -> str:
    """What the cluster says; elsewhere the address of the default route, or loopback where there is none.

    The cluster comes first: a node may have no default route, or one through a network that is not the cluster's.
    """
    return os.environ.get(NODE_ADDRESS) or _of_default_route()


def free_port() -> int:
    """A port of this machine's loopback address that nobody listens on now; somebody may a moment later."""
    with socket.socket() as probe:
        # Port 0 asks the system for one that is free.
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def _of_default_route() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # A documentation address (RFC 5737): connecting a datagram socket picks the route and sends nothing.
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return LOOPBACK


def interface_of(address: str) -> str | None:
    """The network interface that has this address."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if address in [one.address for one in addresses]:
            return str(name)
    return None

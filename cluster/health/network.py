"""What NCCL will find: its version, the network interfaces, InfiniBand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib import metadata

from cluster.health.facts import Facts
from cluster.health.finding import Finding

NCCL_PACKAGES = ("nvidia-nccl-cu13", "nvidia-nccl-cu12")
SOCKET_VARIABLE = "NCCL_SOCKET_IFNAME"


def nccl_version() -> str | None:
    """The version of the NCCL that torch loads; None in a build without it."""
    for name in NCCL_PACKAGES:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def check_network(
    facts: Facts,
    nccl: str | None,
    several_nodes: bool,
    environment: Mapping[str, str] = os.environ,
) -> Iterator[Finding]:
    """NCCL, its interface and InfiniBand.

    Args:
        several_nodes: whether ranks will talk across nodes.
        environment: where NCCL's variables may be set.
    """
    yield Finding("NCCL", nccl or "none in this torch, which has no GPU")
    yield check_interface(facts.interfaces, several_nodes, environment)
    yield check_infiniband(facts.infiniband, several_nodes)


def check_interface(
    interfaces: list[str],
    several_nodes: bool,
    environment: Mapping[str, str],
) -> Finding:
    """The interface that NCCL takes, and whether that is a guess among several."""
    name = "interface"
    wanted = environment.get(SOCKET_VARIABLE, "")
    if wanted:
        return _check_wanted(wanted, interfaces)
    if not interfaces:
        remedy = "connect the nodes, or name an interface" if several_nodes else ""
        return Finding(
            name, "none that leads to another machine", remedy, several_nodes
        )
    state = f"{interfaces[0]} by the default route"
    if len(interfaces) == 1:
        return Finding(name, state)
    others = ", ".join(interfaces[1:])
    remedy = ""
    if several_nodes:
        remedy = f"if the nodes talk over another one, --cluster.env.{SOCKET_VARIABLE} {interfaces[1]}"
    return Finding(name, f"{state}; also up: {others}", remedy)


def _check_wanted(wanted: str, interfaces: list[str]) -> Finding:
    """What NCCL_SOCKET_IFNAME names: beginnings of names, `=` for whole names, `^` for all others."""
    state = f"{wanted} by {SOCKET_VARIABLE}"
    if wanted.startswith("^"):
        return Finding("interface", state)
    for prefix in wanted.removeprefix("=").split(","):
        if any(interface.startswith(prefix) for interface in interfaces):
            return Finding("interface", state)
    remedy = f"name one of {', '.join(interfaces) or 'none'}, which are up"
    return Finding("interface", state, remedy, is_fatal=True)


def check_infiniband(
    devices: Mapping[str, str],
    several_nodes: bool,
) -> Finding:
    """Whether there is InfiniBand or RoCE, and its ports are up."""
    name = "InfiniBand"
    if not devices:
        remedy = ""
        if several_nodes:
            remedy = (
                "gradients and gathered weights go over TCP: expect a slow step, or give the container the "
                "devices (--device /dev/infiniband, --ulimit memlock=-1)"
            )
        return Finding(name, "none", remedy)
    shown = []
    down = []
    for device, state in devices.items():
        shown.append(f"{device} {state}")
        if state != "ACTIVE":
            down.append(device)
    remedy = ""
    if down and several_nodes:
        remedy = f"leave it out: --cluster.env.NCCL_IB_HCA ^{','.join(down)}"
    return Finding(name, ", ".join(shown), remedy)

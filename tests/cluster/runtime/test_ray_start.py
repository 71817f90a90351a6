"""What the environment can break as Ray starts, said with its cause and within seconds."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

SCRIPT = """
from cluster.runtime import ray_runtime
from common.config import Cluster

ray_runtime.CONNECT_LIMIT_S = {limit_s}
ray_runtime.RayRuntime(Cluster(address={address!r}))
"""


def environment(**changes: str) -> dict[str, str]:
    """This process's, without what it says about Ray."""
    variables = dict(os.environ)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_TMPDIR"):
        variables.pop(name, None)
    return {**variables, **changes}


ALONE = """
from functools import cache
from ray._private import services

services.find_gcs_addresses = cache(set)
"""
"""`auto` falls back on any other cluster that runs on the machine: here there is none."""


def refusal(
    address: str | None = None,
    limit_s: float = 10.0,
    preamble: str = "",
    **variables: str,
) -> str:
    """What a process of its own says: Ray reads its environment once, and may know of other clusters."""
    script = preamble + SCRIPT.format(limit_s=limit_s, address=address)
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    last_line = answer.stderr.splitlines()[-1]
    return last_line.removeprefix("common.errors.UserError: ")


def listener() -> socket.socket:
    """A server that accepts connections and says nothing, as a stopped process does."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server


@pytest.mark.real
def test_auto_with_a_dead_cluster(tmp_path: Path) -> None:
    with socket.socket() as dead:
        # Bound, so that nobody else takes the port, but not listening.
        dead.bind(("127.0.0.1", 0))
        port = dead.getsockname()[1]
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
        line = refusal(preamble=ALONE, RAY_TMPDIR=str(tmp_path), RAY_ADDRESS="auto")
    assert f"got: [Errno {errno.ECONNREFUSED}] Connection refused" in line
    assert "= auto means" in line and "unset RAY_ADDRESS" in line


@pytest.mark.real
def test_auto_with_a_head_that_wants_its_token(tmp_path: Path) -> None:
    """Every cluster does since Ray has made a token once, and shows it to `auto` alone."""
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("0" * 64)
    # Of its own and short, for sockets have short paths.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        variables = environment(HOME=str(home), RAY_TMPDIR=folder)
        words = ["-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0"]
        words += ["--num-cpus=1", "--include-dashboard=false"]
        words.append(f"--temp-dir={folder}/ray")
        head = subprocess.Popen(
            [sys.executable, *words],
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(Path(folder) / "ray" / "ray_current_cluster", head)
            script = SCRIPT.format(limit_s=10.0, address="auto")
            answer = subprocess.run(
                [sys.executable, "-c", script],
                env=variables,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
        finally:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
    assert answer.returncode == 0, answer.stderr[-2000:]


def wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a head has said where it is."""
    end = time.monotonic() + 60
    while not file.exists():
        assert process.poll() is None and time.monotonic() < end, "the head is not up"
        time.sleep(0.2)


@pytest.mark.real
def test_a_head_that_answers_nothing() -> None:
    with listener() as server:
        line = refusal(f"127.0.0.1:{server.getsockname()[1]}", limit_s=0.2)
    assert "got: timed out; start one" in line


@pytest.mark.real
def test_a_temporary_folder_too_long_for_sockets(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    line = refusal(TMPDIR=str(folder))
    assert line.startswith("TMPDIR: expected a folder short enough") and "xxx;" in line


@pytest.mark.real
def test_a_home_that_cannot_be_written() -> None:
    # Nobody can make a folder there, not even root.
    line = refusal(HOME="/proc")
    assert line.startswith("HOME: expected a home folder that can be written")

"""Supervision on real parts: vLLM's engine core and its actor are killed and stopped; a node leaves the cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.runtime.processes import process_of
from tests.real_runs import ROOT, command

pytestmark = [pytest.mark.real, pytest.mark.chaos]


@pytest.mark.slow
def test_an_engine_that_is_killed_or_stopped_comes_back_and_is_never_orphaned(
    tmp_path: Path,
) -> None:
    words = command("tests.cluster.supervision.engine_deaths", tmp_path)
    with subprocess.Popen(
        words,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        outcome: dict[str, Any] = json.loads(process.stdout.readline())
        # The driver and all of Ray, but not vLLM's processes, which have to see it for themselves.
        os.kill(process.pid, signal.SIGKILL)
    causes = [cause for cause, _ in outcome["restarts"]]
    assert causes == [
        "its engine's process ended by SIGKILL, often for want of memory",
        "its engine has said nothing for 6 s",
        "it has said nothing for 6 s",
    ]
    assert outcome["num_groups"] == 3 * 8
    deadline = time.monotonic() + 30
    left = outcome["processes"]
    while left and time.monotonic() < deadline:
        time.sleep(0.2)
        left = [pid for pid in left if process_of(pid) is not None]
    assert left == []


def test_a_node_that_leaves_gives_way_to_one_that_joins(tmp_path: Path) -> None:
    words = command("tests.cluster.supervision.leaving", tmp_path)
    result = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True
    )
    restart, outcome = map(json.loads, result.stdout.splitlines())
    assert restart["cause"] == "its machine has left the cluster"
    assert outcome["answered_by_the_other"]
    assert outcome["is_on_the_new_node"]
    assert "waiting for one with 0 GPUs and 2 CPUs" in result.stderr

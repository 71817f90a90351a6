"""A worker whose node leaves comes back on one that joins, under a real reservation; see `leaving.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.runtime.ray_handle import REASONS

CAUSES = (*REASONS.values(), "it has said nothing for 10 s")

pytestmark = [pytest.mark.real, pytest.mark.chaos]


def test_a_worker_comes_back_on_the_node_that_joins(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.cluster.supervision.leaving", str(tmp_path)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    restart, outcome = map(json.loads, done.stdout.splitlines()[-2:])
    assert restart["name"].startswith("worker/")
    # Whether Ray has missed the node or only the process, when the worker is asked.
    assert restart["cause"] in CAUSES, restart
    assert outcome["answered_by_the_other"]
    assert outcome["is_on_the_new_node"]

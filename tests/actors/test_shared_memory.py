"""The next engine removes the weights of a killed worker and leaves those of a living one alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import actors.weights.shared_memory
from actors.weights.shared_memory import shared_folder, sweep

OWNER = """
import sys, time
from pathlib import Path
import actors.weights.shared_memory
actors.weights.shared_memory.SHARED_MEMORY = Path(sys.argv[1])
with actors.weights.shared_memory.shared_folder() as folder:
    (folder / "weights.safetensors").write_bytes(bytes(100))
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /dev/shm."""
    monkeypatch.setattr(actors.weights.shared_memory, "SHARED_MEMORY", tmp_path)
    return tmp_path


def make_old(folder: Path) -> None:
    an_hour_ago = time.time() - 3600
    os.utime(folder, (an_hour_ago, an_hour_ago))


def test_what_a_killed_owner_left_is_swept_up(shared_memory: Path) -> None:
    other = shared_memory / "somebody-elses"
    other.mkdir()
    make_old(other)
    command = [sys.executable, "-c", OWNER, str(shared_memory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        make_old(folder)
        assert sweep() == 0, "its owner is alive"
        assert folder.exists()
        # SIGKILL: no handler and no `finally` runs.
        owner.kill()
    # Young again.
    os.utime(folder)
    assert sweep() == 0, "so young a folder may not be locked yet"
    assert folder.exists()
    make_old(folder)
    assert sweep() == 1
    assert list(shared_memory.iterdir()) == [other]


def test_the_folder_is_gone_after_use_and_after_an_error(shared_memory: Path) -> None:
    with pytest.raises(ZeroDivisionError), shared_folder() as folder:
        assert folder.parent == shared_memory
        raise ZeroDivisionError
    assert not list(shared_memory.iterdir())

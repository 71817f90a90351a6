"""What killed workers held in shared memory is removed, and what living ones hold is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.machine.held_files import SHARED_MEMORY, held_by, sweep_held

WORKER = """
import multiprocessing, os, time
from multiprocessing.shared_memory import SharedMemory
from common.machine.held_files import HeldFiles

ring = SharedMemory(create=True, size=4096)
lock = multiprocessing.get_context("spawn").Lock()
held = HeldFiles()
held.note([os.getpid()])
# The second time there is nothing new.
held.note([os.getpid()])
print("held", flush=True)
time.sleep(600)
"""

pytestmark = pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="no shared memory")


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, which holds a ring and a semaphore."""
    words = [sys.executable, "-c", WORKER]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        kill(process)


def kill(worker: subprocess.Popen[str]) -> None:
    """The process, and Python's own watcher beside it."""
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def test_files_of_a_killed_worker_are_swept(worker: subprocess.Popen[str]) -> None:
    names = held_by([worker.pid])
    assert sorted(name.split("-")[0].split("_")[0] for name in names) == [
        "psm",
        "sem.mp",
    ]
    held = SHARED_MEMORY / f"sightline-{os.geteuid()}-{worker.pid}.held"
    assert sorted(held.read_text().split()) == sorted(names)

    sweep_held()
    assert all((SHARED_MEMORY / name).exists() for name in names)

    kill(worker)
    assert all((SHARED_MEMORY / name).exists() for name in names)
    assert sweep_held() >= len(names)
    assert not any((SHARED_MEMORY / name).exists() for name in names)
    assert not held.exists()


def test_only_such_files_are_removed(tmp_path: Path) -> None:
    """A list that somebody else wrote names nothing but what these libraries make."""
    stranger = SHARED_MEMORY / f"stranger-{os.getpid()}"
    outside = tmp_path / "psm_outside"
    held = SHARED_MEMORY / f"sightline-{os.geteuid()}-0.held"
    stranger.touch()
    outside.touch()
    try:
        held.write_text(f"{stranger.name}\npsm_/../../../{outside}\npsm_gone\n")
        sweep_held()
        assert stranger.exists()
        assert outside.exists()
        assert not held.exists()
    finally:
        stranger.unlink()


def test_a_process_that_has_ended_holds_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert held_by([process.pid]) == set()

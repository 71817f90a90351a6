"""One copy of weights for all engines of a node: who writes it, who removes it, and what happens when they die."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.weights.shared_memory import in_thread, shared_folder, sweep
from common.errors import UserError
from common.machine import held_files

PATIENCE_S = 30.0
PROCESS = """
import sys, time
from pathlib import Path
import actors.weights.shared_memory as memory
from common.machine import held_files

folder, content, hangs = sys.argv[1:]
held_files.SHARED_MEMORY = Path(folder)

def fill(path):
    (path / "half").touch()
    print("filling", flush=True)
    if hangs == "while it fills":
        time.sleep(600)

with memory.shared_folder(content, fill, 30):
    print("reading", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /dev/shm."""
    monkeypatch.setattr(held_files, "SHARED_MEMORY", tmp_path)
    return tmp_path


@contextmanager
def process(
    shared_memory: Path, content: str, hangs: str
) -> Iterator[subprocess.Popen[str]]:
    """Another process that is killed at the end, `hangs` saying when it does."""
    command = [sys.executable, "-c", PROCESS, str(shared_memory), content, hangs]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        expected = ["filling"] if hangs == "while it fills" else ["filling", "reading"]
        assert [child.stdout.readline().strip() for _ in expected] == expected
        try:
            yield child
        finally:
            # SIGKILL: no handler and no `finally` runs.
            child.kill()


def must_not_fill(folder: Path) -> None:
    raise AssertionError(f"{folder} is there")


def test_engines_of_a_node_share_one_copy(shared_memory: Path) -> None:
    """Eight at once, again and again: one of them writes, and none finds less than the whole."""
    fills: list[Path] = []
    start = threading.Barrier(8)

    def fill(folder: Path) -> None:
        fills.append(folder)
        (folder / "first").write_text("1")
        time.sleep(0.01)
        (folder / "second").write_text("2")

    def read(content: str) -> None:
        start.wait()
        with shared_folder(content, fill, PATIENCE_S) as folder:
            # Nobody leaves before all are here.
            start.wait()
            assert (folder / "first").read_text() == "1"
            assert (folder / "second").read_text() == "2"

    with ThreadPoolExecutor(8) as threads:
        for number in range(20):
            list(threads.map(read, [str(number)] * 8))
            assert len(fills) == number + 1
            assert not list(shared_memory.iterdir())


def test_a_quick_reader_leaves_it_to_those_who_wait(shared_memory: Path) -> None:
    """All want it before it is whole: it is written once, though the first has read before the others look again."""
    fills: list[Path] = []
    start = threading.Barrier(8)

    def fill(folder: Path) -> None:
        fills.append(folder)
        (folder / "value").write_text("1")
        time.sleep(0.05)

    def read(content: str) -> None:
        start.wait()
        with shared_folder(content, fill, PATIENCE_S) as folder:
            assert (folder / "value").read_text() == "1"

    with ThreadPoolExecutor(8) as threads:
        for number in range(20):
            list(threads.map(read, [str(number)] * 8))
            assert len(fills) == number + 1
            assert not list(shared_memory.iterdir())


def test_those_who_come_and_go_find_it_whole_or_write_it(shared_memory: Path) -> None:
    """Without a barrier: somebody may come in the moment in which the last one leaves."""

    def fill(folder: Path) -> None:
        (folder / "value").write_text("1")

    def read(number: int) -> None:
        with shared_folder("weights", fill, PATIENCE_S) as folder:
            assert (folder / "value").read_text() == "1"
            assert len(list(shared_memory.iterdir())) == 1
            if number % 5 == 0:
                sweep()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(read, range(400)))
    assert not list(shared_memory.iterdir())


def test_it_is_private_and_gone_after_an_error(shared_memory: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        shared_folder("weights", Path.iterdir, PATIENCE_S) as folder,
    ):
        assert folder.parent == shared_memory
        assert folder.stat().st_mode & 0o777 == 0o700
        raise ZeroDivisionError
    assert not list(shared_memory.iterdir())


def test_what_could_not_be_written_is_gone(shared_memory: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").touch()
        raise UserError("no room")

    with pytest.raises(UserError, match="no room"):
        shared_folder("weights", fill, PATIENCE_S).__enter__()
    assert not list(shared_memory.iterdir())


def test_a_writer_that_dies_is_followed_by_the_next_one(shared_memory: Path) -> None:
    fills = []

    def fill(folder: Path) -> None:
        assert not (folder / "half").exists(), "what the dead one wrote is gone"
        fills.append(folder)

    with (
        process(shared_memory, "weights", "while it fills") as writer,
        ThreadPoolExecutor(1) as thread,
    ):
        manager = shared_folder("weights", fill, PATIENCE_S)
        entering = thread.submit(manager.__enter__)
        time.sleep(0.1)
        assert not entering.done(), "the writer is alive"
        writer.kill()
        entering.result(timeout=PATIENCE_S)
    assert len(fills) == 1


def test_a_writer_that_hangs_keeps_no_other_from_its_weights(
    shared_memory: Path,
) -> None:
    fills = []
    with process(shared_memory, "weights", "while it fills"):
        started = time.monotonic()
        with shared_folder("weights", fills.append, 0.3) as folder:
            assert fills == [folder]
            assert 0.3 < time.monotonic() - started < 10
            assert len(list(shared_memory.iterdir())) == 2
        (left,) = shared_memory.iterdir()
        assert left != folder
    assert sweep() == 1


def test_engines_of_one_process_share_its_second_folder_too(
    shared_memory: Path,
) -> None:
    """One of them fills it while the other, whose patience has ended as well, waits for it."""
    fills = []

    def fill(folder: Path) -> None:
        fills.append(folder)
        time.sleep(0.5)
        (folder / "value").write_text("1")

    both = threading.Barrier(2)

    def read() -> Path:
        with shared_folder("weights", fill, 0.1) as folder:
            assert (folder / "value").read_text() == "1"
            both.wait(PATIENCE_S)
            return folder

    with (
        process(shared_memory, "weights", "while it fills"),
        ThreadPoolExecutor(2) as threads,
    ):
        readers = [threads.submit(read) for _ in range(2)]
        first, second = (reader.result() for reader in readers)
    assert first == second
    assert fills == [first]


def test_a_reader_that_dies_does_not_disturb_the_others(shared_memory: Path) -> None:
    with (
        process(shared_memory, "weights", "while it reads") as reader,
        shared_folder("weights", must_not_fill, PATIENCE_S) as folder,
    ):
        reader.kill()
        reader.wait()
        assert sweep() == 0
        assert (folder / "half").exists()
    assert not list(shared_memory.iterdir())


def test_what_a_killed_process_left_is_swept_up(shared_memory: Path) -> None:
    other = shared_memory / "somebody-elses"
    other.mkdir()
    with process(shared_memory, "weights", "while it reads") as owner:
        assert sweep() == 0, "its owner is alive"
        owner.kill()
        owner.wait()
        assert sweep() == 1
    assert list(shared_memory.iterdir()) == [other]


def test_what_a_killed_worker_held_is_swept_up_in_the_same_place(
    shared_memory: Path,
) -> None:
    (shared_memory / "psm_ring").touch()
    held = shared_memory / f"sightline-{os.geteuid()}-0.held"
    held.write_text("psm_ring\n")
    assert sweep() == 1
    assert not list(shared_memory.iterdir())


def test_a_folder_of_this_name_may_be_somebody_elses(
    shared_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared_memory / f"sightline-{os.geteuid()}-weights"
    elsewhere = shared_memory / "elsewhere"
    elsewhere.mkdir()
    folder.symlink_to(elsewhere)
    with pytest.raises(UserError, match="expected a folder of this user"):
        shared_folder("weights", must_not_fill, PATIENCE_S).__enter__()
    assert sweep() == 0

    foreign = shared_memory / f"sightline-{os.geteuid() + 1}-weights"
    foreign.mkdir()
    # As that other user would see it.
    monkeypatch.setattr(os, "geteuid", lambda: foreign.stat().st_uid + 1)
    with pytest.raises(UserError, match="expected a folder of user"):
        shared_folder("weights", must_not_fill, PATIENCE_S).__enter__()


def test_who_is_cancelled_while_it_writes_leaves_nothing(shared_memory: Path) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def fill(folder: Path) -> None:
        writing.set()
        go_on.wait(PATIENCE_S)

    async def load() -> None:
        async with in_thread(shared_folder("weights", fill, PATIENCE_S)):
            raise AssertionError("it was cancelled")

    async def cancelled() -> None:
        task = asyncio.create_task(load())
        await asyncio.to_thread(writing.wait, PATIENCE_S)
        task.cancel()
        await asyncio.sleep(0.05)
        go_on.set()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(cancelled())
    assert not list(shared_memory.iterdir())

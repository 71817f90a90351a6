"""Who waits for a folder hears that nothing comes, and in the end stops."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.checkpoints import folder_watch
from cluster.checkpoints.folder_watch import FolderWatch
from common.config import Loop
from common.errors import RunFailed

LIMITS = Loop(heartbeat_s=30, stall_limit_s=100)
SAID = "checkpoint of step 4: nothing new for"


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock; it begins at 0."""
    now = [0.0]
    monkeypatch.setattr(folder_watch, "monotonic", lambda: now[0])

    def set_clock(seconds: float) -> None:
        now[0] = seconds

    return set_clock


def watch_of(folder: Path) -> FolderWatch:
    return FolderWatch(folder, "checkpoint of step 4", LIMITS)


def test_a_folder_that_grows_is_waited_for_however_long(
    tmp_path: Path,
    at: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def look_often() -> None:
        watch = watch_of(tmp_path)
        (tmp_path / "learner").mkdir()
        for second in range(0, 1000, 20):
            with (tmp_path / "learner" / "rank_0_000").open("ab") as file:
                file.write(b"more")
            at(second)
            await watch.look()

    asyncio.run(look_often())
    assert caplog.messages == []


def test_nothing_new_is_said_once_a_heartbeat_and_then_stops_the_run(
    tmp_path: Path,
    at: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def look_on() -> None:
        watch = watch_of(tmp_path)
        (tmp_path / "rank_0_000").write_bytes(bytes(20_000_000))
        for second in range(1, 100):
            at(second)
            await watch.look()
        at(102)
        await watch.look()

    with pytest.raises(RunFailed) as error:
        asyncio.run(look_on())
    assert str(error.value) == (
        f"checkpoint of step 4: expected files in {tmp_path}, got nothing new for 101 s; look at its disk, and go on "
        "with --resume"
    )
    # Seen at second 1: 30, 60 and 90 seconds later.
    expected = [
        f"{SAID} {seconds} s in {tmp_path}, 0.02 GB so far" for seconds in (30, 60, 90)
    ]
    assert caplog.messages == expected


def test_a_disk_that_does_not_answer_has_nothing_new(
    tmp_path: Path,
    at: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = threading.Event()

    def stalled(_: Path) -> int:
        answers.wait()
        return 5

    monkeypatch.setattr(folder_watch, "_bytes_in", stalled)
    monkeypatch.setattr(folder_watch, "ANSWER_S", 0.01)

    async def look_on() -> None:
        watch = watch_of(tmp_path)
        await watch.look()
        at(101)
        try:
            await watch.look()
        finally:
            answers.set()

    with pytest.raises(RunFailed, match="got nothing new for 101 s"):
        asyncio.run(look_on())


def test_a_disk_that_never_answers_does_not_keep_the_process() -> None:
    """A process of its own, whose look at the folder hangs for ever: it raises, and ends."""
    program = """
import asyncio, threading
from pathlib import Path
from cluster.checkpoints import folder_watch
from common.config import Loop

folder_watch._bytes_in = lambda folder: threading.Event().wait()
folder_watch.ANSWER_S = 0.05
clock = iter(range(0, 10_000, 400))
folder_watch.monotonic = lambda: float(next(clock))
watch = folder_watch.FolderWatch(Path("."), "checkpoint", Loop(stall_limit_s=300))
asyncio.run(watch.look())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "RunFailed: checkpoint: expected files" in ended.stderr

"""The processes of this machine, as Linux tells them in /proc."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from common.protocols import Process

PROC = Path("/proc")
STDERR = 2
STARTED = 19
"""Place of the start time among the fields of /proc/PID/stat that follow the name (proc(5): field 22)."""
POLL_S = 0.05


def family(pid: int) -> tuple[Process, ...]:
    """A process and all that it has started, the oldest generation first; () when it has ended."""
    waiting = [pid]
    members: list[Process] = []
    while waiting:
        number = waiting.pop(0)
        process = process_of(number)
        if process is not None:
            members.append(process)
            waiting += _children(number)
    return tuple(members)


def process_of(pid: int) -> Process | None:
    """What runs under this number; None when nothing does, or has ended and waits for its parent."""
    try:
        content = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name stands in brackets, and may hold some.
    name, _, rest = content.partition("(")[2].rpartition(")")
    fields = rest.split()
    if fields[0] == "Z":
        return None
    return Process(pid, name, int(fields[STARTED]))


def output_file() -> str:
    """Where this process writes its errors; "" where that is no file."""
    try:
        path = Path(f"/proc/self/fd/{STDERR}").readlink()
    except OSError:
        return ""
    return str(path) if path.is_file() else ""


def kill_all(processes: Iterable[Process], limit_s: float) -> list[int]:
    """SIGKILL those that still run, and wait for their end; returns the numbers of those that stay."""
    left = list(processes)
    deadline = time.monotonic() + limit_s
    while True:
        left = [process for process in left if _runs(process)]
        if not left or time.monotonic() > deadline:
            return [process.pid for process in left]
        for process in left:
            with suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(POLL_S)


def _runs(process: Process) -> bool:
    """Whether it is still this process, and not another one of its number."""
    now = process_of(process.pid)
    return now is not None and now.started == process.started


def _children(pid: int) -> Iterator[int]:
    # Every thread has children of its own. It may end while it is looked at.
    for path in (PROC / str(pid) / "task").glob("*/children"):
        with suppress(OSError):
            for number in path.read_text().split():
                yield int(number)

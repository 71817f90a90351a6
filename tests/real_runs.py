"""Commands of this repository as processes of their own, run to the end or killed; for tests on real parts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.file_kinds import kind_of
from common.journal import read_events
from common.metrics import read_lines
from tests.sockets import exposed

ROOT = Path(__file__).parents[1]


def command(module: str, *words: str | Path) -> list[str]:
    """The words that start `python -m module words`."""
    return [sys.executable, "-m", module, *map(str, words)]


def settings(values: Mapping[str, object]) -> list[str]:
    """Config keys and their values as words of a command."""
    return [f"--{key}={value}" for key, value in values.items()]


def run_to_end(words: list[str], limit_s: float) -> str:
    """Run a command that must succeed; returns what it wrote to standard output."""
    answer = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return answer.stdout


def kill_when(condition: Callable[[], bool], words: list[str], log: Path) -> None:
    """Start a command and kill it without warning as soon as the condition holds."""
    process = _started_until(condition, words, log)
    # The whole session: Ray's and vLLM's processes must not survive the command.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_when(condition: Callable[[], bool], words: list[str], log: Path) -> int:
    """Start a command and ask it to end, as SLURM does, as soon as the condition holds; returns its exit status.

    No process of it may be left.
    """
    process = _started_until(condition, words, log)
    process.terminate()
    status = process.wait(120)
    # Ray's servers see within seconds that their driver is gone.
    end = time.monotonic() + 20
    while pids_of_session(process.pid) and time.monotonic() < end:
        time.sleep(0.2)
    assert [command_line(pid) for pid in pids_of_session(process.pid)] == []
    return status


@dataclass(frozen=True, slots=True)
class Process:
    """One that runs."""

    pid: int
    session: int
    name: str


def processes() -> list[Process]:
    """Every process that is no zombie."""
    running = []
    for folder in Path("/proc").glob("[0-9]*"):
        # One may just have ended.
        with suppress(OSError, IndexError):
            stat = (folder / "stat").read_text()
            name, _, rest = stat.partition("(")[2].rpartition(")")
            fields = rest.split()
            if fields[0] != "Z":
                process = Process(int(folder.name), int(fields[3]), name)
                running.append(process)
    return running


def pids_of_session(session: int) -> list[int]:
    """All processes of a session."""
    return [process.pid for process in processes() if process.session == session]


def command_line(pid: int) -> str:
    """What a process was started with; "" when it has ended."""
    with suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_text()
    return ""


def _started_until(
    condition: Callable[[], bool], words: list[str], log: Path
) -> subprocess.Popen[bytes]:
    with log.open("w") as file:
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=file, stderr=file, start_new_session=True
        )
        end = time.monotonic() + 400
        while not condition():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, "the condition did not hold in time"
            time.sleep(0.2)
    # Whatever a run starts, nobody else may talk to it.
    assert exposed(pids_of_session(process.pid)) == []
    return process


def metric_lines(run_dir: Path) -> list[dict[str, float]]:
    """The steps of a run so far."""
    path = run_dir / "metrics.jsonl"
    return read_lines(path) if path.exists() else []


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The journal's events of one kind, in order."""
    journal = run_dir / "journal" / "events.jsonl"
    return [event for event in read_events(journal) if event["event"] == kind]


def pickles_in(folder: Path) -> list[Path]:
    """Files below a folder that are pickles, or archives as torch makes them of one."""
    kinds = ("a Python pickle, which is never opened", "a ZIP archive")
    pickles = []
    for path in folder.rglob("*"):
        if path.is_file() and kind_of(path.read_bytes()).name in kinds:
            pickles.append(path)
    return pickles

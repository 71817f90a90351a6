"""The small parent of a run: what it starts again, and what it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import auto_resume, train
from cluster.auto_resume import run_again, without_option

CHILD = """
import os, signal, sys
from pathlib import Path
folder, *ends = sys.argv[1:]
starts = Path(folder, "starts")
lines = starts.read_text().splitlines() if starts.exists() else []
starts.write_text("\\n".join([*lines, "resumed" if "--resume" in ends else "new"]))
end = ends[len(lines)]
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(end))
"""


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_resume, "FIRST_PAUSE_S", 0.0)


def run(folder: Path, most: int, *ends: str) -> tuple[int, list[str]]:
    """The status, and how each start was."""
    command = [sys.executable, "-c", CHILD, str(folder), *ends]
    status = run_again(command, most)
    return status, (folder / "starts").read_text().splitlines()


def test_the_option_is_not_passed_on() -> None:
    words = ["a.toml", "--auto-resume", "3", "--run.dir", "x", "--auto-resume=2"]
    assert without_option(words) == ["a.toml", "--run.dir", "x"]


@pytest.mark.parametrize("words", [["--auto-res", "3"], ["--auto-r=3"]])
def test_an_option_that_is_not_written_out_starts_nothing(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The child would not be without it, and would start a child of its own, and so on."""

    def start(*_: object) -> int:
        raise AssertionError("a process without end")

    monkeypatch.setattr(auto_resume, "run_again", start)
    preset = tmp_path / "preset.toml"
    preset.touch()
    assert train.main([str(preset), *words]) == 2
    assert "--auto-r" in capsys.readouterr().err


def test_a_number_below_0_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--auto-resume", "-1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --auto-resume: expected how often to start again")


def test_a_death_and_a_failure_are_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, 3, "killed", "1", "0") == (0, ["new", "resumed", "resumed"])
    assert capsys.readouterr().err.splitlines() == [
        "the run ended with status -9; resuming it (1 of 3)",
        "the run ended with status 1; resuming it (2 of 3)",
    ]


@pytest.mark.parametrize("status", [0, 2, 130, 143])
def test_ends_that_another_start_would_not_change_are_ends(
    tmp_path: Path, status: int
) -> None:
    assert run(tmp_path, 3, str(status)) == (status, ["new"])


def test_it_gives_up_after_so_many_times(tmp_path: Path) -> None:
    status, starts = run(tmp_path, 2, "1", "1", "killed", "0")
    assert status == 128 + signal.SIGKILL
    assert len(starts) == 3


PARENT = """
import sys
from cluster.auto_resume import run_again
child = "import time; print('up', flush=True); time.sleep(60)"
sys.exit(run_again([sys.executable, "-c", child], 3))
"""


def test_sigterm_reaches_the_child_and_ends_both() -> None:
    words = [sys.executable, "-c", PARENT]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"up\n"
        # Its handler is set after the child has started.
        time.sleep(0.3)
        os.kill(parent.pid, signal.SIGTERM)
        assert parent.wait(20) == 128 + signal.SIGTERM

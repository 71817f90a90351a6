"""What a person sees of a training: the view on a terminal, and plain lines where there is none."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from cluster.runtime.work_log import WorkLog, covered_s
from cluster.training_view import GLYPHS, TrainingView, large

METRICS = {
    "loss": 0.5,
    "rewards/margins": 0.25,
    "staleness/mean": 1.0,
    "validation/score": 0.9,
}


class Clock:
    """Seconds as a test sets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def view_of(work: WorkLog, total: int = 100, done: int = 40) -> TrainingView:
    return TrainingView("demo", total, done, global_batch=8, work=work)


def shown(view: TrainingView, width: int = 100) -> str:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(view.render())
    return capture.get()


def test_the_view_has_all_that_a_person_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of 4 s: 2 pairs a second; 58 steps are left, 232 s."""
    clock = Clock(monkeypatch)
    work = WorkLog(lambda work: None)
    view = view_of(work)
    with work.during("rollout/0", "generate", [[1, 2]]):
        clock.now += 4
        view.step(41, METRICS)
    clock.now += 4
    view.step(42, {"loss": 0.25})
    with work.during("learner", "step", [1, [1]]):
        text = shown(view)
    for words in ("demo", "waits for the learner's step", "loss 0.250"):
        assert words in text
    assert "validation 0.900 at step 41" in text
    # 4 of the last 8 seconds.
    assert "engines █████░░░░░ 50%" in text
    assert "judges ░░░░░░░░░░ 0%" in text
    for figure in ("42/100", "2.0", "3:52"):
        for row in str(large(figure)).splitlines():
            assert row.rstrip() in text


def test_it_fits_a_narrow_terminal() -> None:
    lines = shown(view_of(WorkLog(lambda work: None)), width=50).splitlines()
    assert max(map(len, lines)) <= 50


def test_every_glyph_is_three_lines_of_one_width() -> None:
    for rows in GLYPHS.values():
        assert len(rows) == 3
        assert len({len(row) for row in rows}) == 1


def test_what_it_waits_for() -> None:
    work = WorkLog(lambda work: None)
    view = view_of(work)
    assert view.waits_for == "pairs"
    with work.during("reward/0", "rank", [[1]]):
        assert view.waits_for == "the judge"
        with work.during("rollout/0", "generate", [[1]]):
            assert view.waits_for == "pairs (1 calls with the judge)"
            with work.during("rollout/1", "receive", [1]):
                assert view.waits_for == "engines that load weights"


def test_without_a_terminal_there_are_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with view_of(WorkLog(lambda work: None)) as view:
        clock.now += 10
        view.step(41, METRICS)
    line = capsys.readouterr().err
    assert line.startswith("training: 41/100, 0.1/s 0.8 pairs/s · staleness 1.00 ·")
    assert "validation 0.900 at step 41" in line
    assert "busy: engines 0%, judges 0%, learner 0%, 590 s left" in line
    assert "\x1b" not in line and "╭" not in line


def test_on_a_terminal_a_run_shows_the_view(tmp_path: Path) -> None:
    """A whole run with fakes in a process of its own, whose standard error is a terminal."""
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.cluster.runs import make_config, run\n"
        "run(make_config(Path(sys.argv[1])))\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=environment,
    )
    os.close(theirs)
    screen = b""
    # A terminal whose other end is closed cannot be read.
    try:
        while part := os.read(ours, 4096):
            screen += part
    except OSError:
        pass
    output, _ = process.communicate()
    os.close(ours)
    assert process.returncode == 0
    assert "waits for" in screen.decode() and "pairs a second" in screen.decode()
    # What is printed for a file does not go to the terminal.
    assert "data: 40 prompts" in output


def test_seconds_that_overlap_count_once() -> None:
    assert covered_s([(0, 2), (1, 3), (5, 6), (5.5, 5.6)]) == 4
    assert covered_s([]) == 0


def test_a_call_that_fails_is_noted_and_its_error_raised() -> None:
    noted: list[str] = []
    work = WorkLog(lambda call: noted.append(call.what))
    with pytest.raises(ValueError, match="theirs"), work.during("learner", "step", []):
        raise ValueError("theirs")
    assert noted == ["train"] and work.running("learner") == []


def test_a_journal_that_is_full_does_not_hide_what_a_call_raised() -> None:
    def fail(_: object) -> None:
        raise OSError("full")

    with (
        pytest.raises(ValueError, match="theirs"),
        WorkLog(fail).during("learner", "step", []),
    ):
        raise ValueError("theirs")


def test_workers_without_work_count_as_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines worked; a minute later one of them works all the time, and the other one not at all."""
    now = [0.0]
    monkeypatch.setattr("cluster.runtime.work_log.time.monotonic", lambda: now[0])
    log = WorkLog(lambda work: None)
    for name in ("rollout/0", "rollout/1"):
        with log.during(name, "generate", []):
            now[0] += 1
    now[0] = 100.0
    with log.during("rollout/0", "generate", []):
        now[0] = 200.0
        assert log.busy_frac("rollout") == pytest.approx(0.5)

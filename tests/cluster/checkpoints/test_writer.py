"""Checkpoints beside the steps: what a step waits for, what a full disk costs, and what the next start finds."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import pkgutil
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.checkpoints.online_pairs import OnlinePairs
from cluster.run.auditing import audit
from cluster.signals import Interrupted
from common.data.datasets import read_pairs
from common.errors import RunFailed, UserError
from common.journal import read_events
from common.records import Dropped, PreferencePair, StepResult, WriteReport
from tests.cluster.runs import STEPS, events, make_config, run, trained_pairs
from tests.fakes.learner import FakeLearner

FULL = "[Errno 28] No space left on device: 'rank_0_000.safetensors'"


class SlowLearner(FakeLearner):
    """Its files are whole when it has trained `steps_to_write` further steps, or after its last one."""

    steps_to_write = 2

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._step = 0
        self._saved_at = 0

    async def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        self._step = step
        return await super().step(step, pairs)

    def save(self, directory: str) -> None:
        self._saved_at = self._step
        super().save(directory)

    def written(self) -> WriteReport | None:
        is_whole = self._step >= min(STEPS, self._saved_at + self.steps_to_write)
        return WriteReport() if is_whole else None


def full_at(*steps: int) -> type[FakeLearner]:
    """A learner whose disk is full when it writes the checkpoints of these steps."""

    class FullLearner(SlowLearner):
        steps_to_write = 0

        def written(self) -> WriteReport | None:
            return WriteReport(FULL if self._saved_at in steps else None)

    return FullLearner


def too_large_at(*steps: int) -> type[FakeLearner]:
    """A learner with more to write in these steps than any disk has room for."""

    class LargeLearner(SlowLearner):
        steps_to_write = 0

        def checkpoint_bytes(self, with_policy: bool) -> int:
            return 1 << 60 if self._step in steps else 1

    return LargeLearner


def order_of(run_dir: Path, *kinds: str) -> list[tuple[str, int]]:
    """The journal's events of some kinds and their steps, in order."""
    journal = run_dir / "journal" / "events.jsonl"
    told = []
    for event in read_events(journal):
        if event["event"] in kinds:
            told.append((event["event"], event["step"]))
    return told


def assert_right(run_dir: Path) -> None:
    """The run has ended well: every pair was trained once, and is in the set that it leaves."""
    account = audit(run_dir)
    assert account.faults == []
    trained = trained_pairs(run_dir)
    assert len(set(trained)) == len(trained) == STEPS * 4
    kept = [pair.id for pair in read_pairs(run_dir / "pairs")]
    assert len(set(kept)) == len(kept)
    assert set(trained) <= set(kept)
    assert list((run_dir / "checkpoints").glob(".step_*")) == []
    assert (run_dir / "policy" / "config.json").exists()


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    _, run_dir = run(make_config(tmp_path), learner=SlowLearner)
    told = order_of(run_dir, "step", "saving", "checkpoint")
    assert told.index(("saving", 4)) < told.index(("step", 5))
    assert told.index(("step", 6)) < told.index(("checkpoint", 4))
    assert told[-1] == ("checkpoint", STEPS)
    assert_right(run_dir)
    for event in events(run_dir, "checkpoint"):
        assert event["copy_s"] >= 0
        assert event["write_s"] >= 0


def test_the_metrics_say_what_a_checkpoint_took(tmp_path: Path) -> None:
    class Unhurried(SlowLearner):
        async def step(
            self, step: int, pairs: list[PreferencePair]
        ) -> tuple[StepResult, list[Dropped]]:
            # Longer than the time between two looks at the files.
            await asyncio.sleep(0.3)
            return await super().step(step, pairs)

    _, run_dir = run(make_config(tmp_path), learner=Unhurried)
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").open()]
    copied = [line["step"] for line in metrics if "time/checkpoint_copy_s" in line]
    assert len(copied) == 1
    assert copied[0] in (6, 7, 8)
    (waited,) = [line["step"] for line in metrics if "time/checkpoint_wait_s" in line]
    assert waited == 5


def test_a_checkpoint_waits_for_the_one_before(tmp_path: Path) -> None:
    """In the order of the journal none begins before the last one has ended."""

    class Slowest(SlowLearner):
        began = 0.0

        def save(self, directory: str) -> None:
            self.began = time.monotonic()
            super().save(directory)

        def written(self) -> WriteReport | None:
            return WriteReport() if time.monotonic() > self.began + 0.2 else None

    config = make_config(tmp_path, checkpoint__interval=1, checkpoint__keep=8)
    _, run_dir = run(config, learner=Slowest)
    told = order_of(run_dir, "saving", "checkpoint")
    for step in range(1, STEPS + 1):
        assert told[2 * step - 2 : 2 * step] == [("saving", step), ("checkpoint", step)]
    assert_right(run_dir)


# A full disk.


@pytest.mark.parametrize("learner", [full_at, too_large_at])
def test_a_full_disk_is_survived(
    learner: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on with the checkpoint before; the pairs are written with the next."""
    config = make_config(tmp_path, checkpoint__interval=2, checkpoint__keep=8)
    _, run_dir = run(config, learner=learner(4))
    (warning,) = [line for line in caplog.messages if "checkpoint of step 4" in line]
    assert "that of step 2 is kept, and the run goes on; make room" in warning
    saved = [event["step"] for event in events(run_dir, "checkpoint")]
    assert saved == [2, 6, 8]
    assert not (run_dir / "pairs" / "step_000004.parquet").exists()
    assert_right(run_dir)


def test_a_folder_goes_when_no_rank_writes_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pairs do not fit while a rank is still writing: what it writes later makes no folder anew."""

    class LateLearner(SlowLearner):
        directory = ""

        def save(self, directory: str) -> None:
            super().save(directory)
            self.directory = directory

        async def step(
            self, step: int, pairs: list[PreferencePair]
        ) -> tuple[StepResult, list[Dropped]]:
            if step == self._saved_at + 1 and self.directory:
                self._write(self.directory, "late.json", step)
            return await super().step(step, pairs)

    write = OnlinePairs.write

    def full(pairs: OnlinePairs, step: int, *args: Any) -> list[Dropped]:
        if step == 4:
            raise OSError(FULL)
        return write(pairs, step, *args)

    monkeypatch.setattr(OnlinePairs, "write", full)
    _, run_dir = run(make_config(tmp_path), learner=LateLearner)
    assert [event["step"] for event in events(run_dir, "unsaved")] == [4]
    assert_right(run_dir)


def test_a_best_checkpoint_that_was_not_written_is_not_picked(tmp_path: Path) -> None:
    config = make_config(tmp_path, checkpoint__interval=2, checkpoint__keep=8)
    _, run_dir = run(config, learner=full_at(2))
    (picked,) = events(run_dir, "picked")
    assert picked["step"] in (4, 6, 8)
    assert_right(run_dir)


@pytest.mark.parametrize("learner", [full_at, too_large_at])
@pytest.mark.parametrize("steps", [(4, 6), (8,)], ids=["two in a row", "the last"])
def test_a_disk_that_stays_full_stops_the_run(
    learner: Any, steps: tuple[int, ...], tmp_path: Path
) -> None:
    config = make_config(tmp_path, checkpoint__interval=2, checkpoint__keep=8)
    kept = steps[0] - 2
    expected = f"checkpoint of step {steps[-1]}: .* step {kept} is kept; make room"
    with pytest.raises(UserError, match=expected) as error:
        run(config, learner=learner(*steps))
    assert "\n" not in str(error.value)
    assert audit(tmp_path / "run").faults == []
    _, run_dir = run(config, resume=True)
    assert events(run_dir, "resume")[0]["step"] == kept
    assert_right(run_dir)


def test_an_error_of_another_kind_ends_the_run(tmp_path: Path) -> None:
    class BrokenLearner(FakeLearner):
        def written(self) -> WriteReport | None:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(make_config(tmp_path), learner=BrokenLearner)
    run(make_config(tmp_path), resume=True)
    assert_right(tmp_path / "run")


def test_a_checkpoint_that_is_never_done_ends_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that stalls: the ranks never say that they have written."""

    class StalledLearner(FakeLearner):
        def written(self) -> WriteReport | None:
            return None

    limits = {"loop__heartbeat_s": 0.3, "loop__stall_limit_s": 2}
    with pytest.raises(RunFailed, match=r"step 4: expected files in .*step_000004"):
        run(make_config(tmp_path, **limits), learner=StalledLearner)
    assert "checkpoint of step 4: nothing new for" in caplog.text
    assert audit(tmp_path / "run").faults == []
    _, run_dir = run(make_config(tmp_path), resume=True)
    assert_right(run_dir)


# Asked to end, or killed, at any time.


def test_a_run_that_is_asked_to_end_waits_for_what_is_written(tmp_path: Path) -> None:
    class AskedLearner(SlowLearner):
        async def step(
            self, step: int, pairs: list[PreferencePair]
        ) -> tuple[StepResult, list[Dropped]]:
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(0.05)
            return await super().step(step, pairs)

        def written(self) -> WriteReport | None:
            # Nothing is trained any more: it comes with time.
            time.sleep(0.01)
            return WriteReport() if self._step >= 5 else None

    with pytest.raises(Interrupted):
        run(make_config(tmp_path, checkpoint__keep=8), learner=AskedLearner)
    account = audit(tmp_path / "run")
    assert account.faults == []
    assert account.checkpoints == [4, 5]
    run(make_config(tmp_path, checkpoint__keep=8), resume=True)
    assert_right(tmp_path / "run")


POINTS = {
    "while the state is copied": ("cluster.runtime.clients.LearnerClient.save", 2),
    "before the pairs": ("cluster.checkpoints.online_pairs.OnlinePairs.write", 2),
    "while the ranks write": ("cluster.runtime.clients.LearnerClient.written", 2),
    "before the state": ("cluster.checkpoints.writer.replace_file", 2),
    "before the checksums": ("cluster.checkpoints.writer.write_checksums", 2),
    "before the folder has its name": ("pathlib.Path.rename", 2),
    "before an older one goes": ("cluster.run.run_dir.RunDir.keep", 2),
    "while an older one goes": ("cluster.run.run_dir.shutil.rmtree", 1),
    "before the line in the journal": ("cluster.run.recorder.Recorder.checkpoint", 2),
}
"""Where a process is killed: at which call of which function."""


# Forks of a small server: a process of these tests that holds models may be too large to be forked.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


def run_and_die(tmp_path: Path, death: Mapping[str, Any]) -> int:
    """Run in a process that dies on its way; its exit status, negative for a signal."""
    child = FORKS.Process(target=run_until_death, args=(tmp_path, dict(death)))
    child.start()
    child.join()
    return child.exitcode


def run_until_death(tmp_path: Path, death: Mapping[str, Any]) -> None:
    if "at" in death:
        _die_in(*death["at"])
    else:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, death["after_s"])
    run(make_config(tmp_path, **KILLED), resume=True, learner=QuickLearner)


class QuickLearner(SlowLearner):
    """A step takes a little, so that there is something to interrupt."""

    step_s = 0.01
    steps_to_write = 1


KILLED = {"checkpoint__interval": 2, "checkpoint__keep": 1}


def _die_in(target: str, call: int) -> None:
    patch = pytest.MonkeyPatch()
    num_calls = 0
    owner, _, name = target.rpartition(".")
    original = getattr(pkgutil.resolve_name(owner), name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_calls
        # Other files are renamed and deleted, too.
        is_meant = True
        if name == "rename":
            is_meant = args[1].name.startswith("step_")
        if name == "rmtree":
            is_meant = Path(args[0]).name.endswith(".old") and Path(args[0]).exists()
        num_calls += is_meant
        if is_meant and num_calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    patch.setattr(target, dying)


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_loses_nothing(point: str, tmp_path: Path) -> None:
    assert run_and_die(tmp_path, {"at": POINTS[point]}) == -signal.SIGKILL
    assert audit(tmp_path / "run").faults == []
    run(make_config(tmp_path, **KILLED), resume=True)
    assert_right(tmp_path / "run")


@pytest.mark.parametrize("seed", range(3))
def test_kills_at_any_time_lose_nothing(seed: int, tmp_path: Path) -> None:
    """One run, killed again and again; the last start ends it."""
    draw = random.Random(seed)
    for _ in range(5):
        run_and_die(tmp_path, {"after_s": draw.uniform(0.05, 0.6)})
    run(make_config(tmp_path, **KILLED), resume=True)
    assert_right(tmp_path / "run")

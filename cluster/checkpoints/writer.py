"""Checkpoints are written beside the steps: a step waits while the state is copied, not while it is written.

    loop      step 4 │ copy │ step 5 │ step 6 │ step 7 …
    writer              └─ learner, policy, pairs, state.json, checksums ─▶ rename ─▶ older ones go
    journal          `saving`                                                 `checkpoint`

A checkpoint stands for the run at its line `saving`: what the journal holds after it belongs to the next one. That line
and the pairs are on disk before the folder gets its name, because a resume does not repeat them. So a kill at any time
leaves this checkpoint or the one before it:

    before the rename   a hidden folder, which the next start sweeps; all after the older `saving` is done again
    after it            a whole checkpoint, whether or not older ones were deleted and the line `checkpoint` was written

One that cannot be written, as on a full disk, never was: `unsaved` in the journal takes `saving` back, its pairs belong
to the next one. The run goes on with the one before; when the next fails, too, or none follows, it stops.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.checkpoints.checksums import write_checksums
from cluster.checkpoints.folder_watch import FolderWatch
from cluster.run.recorder import Recorder
from cluster.run.run_dir import RunDir
from cluster.run.state import RunState
from cluster.runtime.clients import LearnerClient
from common.config import RunConfig
from common.errors import UserError, plain_message
from common.evaluation import Score
from common.paths import partial_directory, replace_directory, replace_file
from common.records import PreferencePair

log = logging.getLogger("sightline")

MAX_FAILURES = 2
"""Checkpoints in a row that cannot be written before the run stops."""
SPARE_BYTES = 1 << 26
"""What else a run writes until the next checkpoint: journal, metrics, pairs."""
POLL_S = (0.01, 1.0)
"""Ranks are asked whether they have written: at first so often, at last so seldom."""


@dataclass(slots=True)
class _Attempt:
    """A checkpoint that is being written."""

    step: int
    score: Score | None
    is_best: bool
    is_last: bool
    best_before: tuple[int | None, float | None]
    state_json: str = ""
    pairs: Sequence[PreferencePair] = ()
    copied: asyncio.Event = field(default_factory=asyncio.Event)


class CheckpointWriter:
    """Writes one checkpoint at a time.

    Args:
        state: of the run; its step is that of the newest checkpoint, 0 when there is none.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: RunDir,
        learner: LearnerClient,
        recorder: Recorder,
        state: RunState,
    ) -> None:
        self.last_step = state.step
        self._config = config
        self._run_dir = run_dir
        self._learner = learner
        self._recorder = recorder
        self._state = state
        self._num_failures = 0
        self._metrics: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    async def save(self, step: int, score: Score | None, is_last: bool = False) -> None:
        """Begin the checkpoint of this step; returns as soon as the next step may change the learner.

        Waits for the one before it. The journal and the run's state are those of this moment.

        Raises:
            UserError: it or the one before cannot be written, and that was the last chance.
            RunFailed: the one before is never done.
        """
        begun = time.monotonic()
        await self.finish()
        self._metrics["time/checkpoint_wait_s"] = time.monotonic() - begun
        state = self._state
        best_before = (state.best_step, state.best_score)
        is_best = state.note_score(step, score)
        attempt = _Attempt(step, score, is_best, is_last, best_before)
        shortage = await self._shortage(is_best)
        if shortage is not None:
            self._fail(attempt, shortage)
            return
        # Nothing is awaited between the state and the line in the journal that stands for it.
        attempt.state_json = state.to_json()
        attempt.pairs = self._recorder.begin_checkpoint(step)
        self._task = asyncio.create_task(self._write(attempt))
        await attempt.copied.wait()
        if self._task.done():
            await self.finish()

    async def finish(self) -> None:
        """Wait until the checkpoint that was begun is on disk, or given up.

        Raises:
            UserError: as `save`.
        """
        task = self._task
        if task is None:
            return
        # Whoever waits may be cancelled; what is written goes on.
        await asyncio.wait({task})
        self._task = None
        task.result()

    async def take_metrics(self) -> dict[str, float]:
        """Seconds of the checkpoints since the last call.

        Raises:
            UserError: as `save`.
        """
        if self._task is not None and self._task.done():
            await self.finish()
        metrics, self._metrics = self._metrics, {}
        return metrics

    async def _shortage(self, with_policy: bool) -> str | None:
        """That the disk has no room for the next checkpoint; None when it has."""
        needed = await self._learner.checkpoint_bytes(with_policy) + SPARE_BYTES
        folder = self._run_dir.path
        free = shutil.disk_usage(folder).free
        if free >= needed:
            return None
        return f"expected {needed / 1e9:.2f} GB free in {folder}, got {free / 1e9:.2f}"

    async def _write(self, attempt: _Attempt) -> None:
        begun = time.monotonic()
        path = self._run_dir.checkpoint(attempt.step)
        try:
            with replace_directory(path) as folder:
                await self._learner.save(folder / "learner")
                if attempt.is_best:
                    await self._learner.export(folder / "policy")
                copied = time.monotonic()
                attempt.copied.set()
                # First: where anything else fails the folder goes, and no rank may still write into it.
                await self._learner_files(attempt, folder)
                await self._recorder.write_pairs(attempt.step, attempt.pairs)
                replace_file(folder / "state.json", attempt.state_json)
                # In a thread: the run goes on meanwhile.
                await asyncio.to_thread(write_checksums, folder)
        except OSError as error:
            reason = plain_message(error)
            await self._undo(attempt, reason)
            self._fail(attempt, f"expected to write it, got: {reason}")
            return
        finally:
            attempt.copied.set()
        self._num_failures = 0
        self.last_step = attempt.step
        seconds = {"copy_s": copied - begun, "write_s": time.monotonic() - copied}
        for name, value in seconds.items():
            self._metrics[f"time/checkpoint_{name}"] = value
        best_step = self._state.best_step
        num_kept = self._config.checkpoint.keep
        await asyncio.to_thread(self._run_dir.keep, num_kept, best_step)
        score = None if attempt.score is None else attempt.score.value
        self._recorder.checkpoint(attempt.step, score, best_step, seconds)

    async def _learner_files(self, attempt: _Attempt, folder: Path) -> None:
        """Wait for the ranks' files.

        Raises:
            OSError: a rank cannot write.
            RunFailed: nothing is written any more.
        """
        what = f"checkpoint of step {attempt.step}"
        watch = FolderWatch(folder, what, self._config.loop)
        pause_s, longest_s = POLL_S
        while True:
            report = await self._learner.written()
            if report is not None:
                break
            await watch.look()
            # Between polls the ranks are at their steps: a call waits for the one before it.
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
        if report.fault is not None:
            raise OSError(report.fault)

    async def _undo(self, attempt: _Attempt, reason: str) -> None:
        """Make it as if the checkpoint had never been begun."""
        # First, because the journal needs room.
        partial = partial_directory(self._run_dir.checkpoint(attempt.step))
        await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
        self._recorder.unsaved(attempt.step, attempt.pairs, reason)

    def _fail(self, attempt: _Attempt, reason: str) -> None:
        """Go on without this checkpoint.

        Raises:
            UserError: the one before it failed, too, or none follows.
        """
        self._num_failures += 1
        state = self._state
        state.best_step, state.best_score = attempt.best_before
        kept = (
            f"that of step {self.last_step} is kept"
            if self.last_step
            else "there is none before it"
        )
        told = f"checkpoint of step {attempt.step}: {reason}; {kept}"
        if attempt.is_last or self._num_failures >= MAX_FAILURES:
            raise UserError(f"{told}; make room and go on with --resume")
        log.warning("%s, and the run goes on; make room before the next one", told)

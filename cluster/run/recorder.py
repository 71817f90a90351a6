"""What a run writes about itself: the journal, the metrics, the progress bar and the set of its online pairs."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cluster.checkpoints.online_pairs import OnlinePairs
from cluster.harm.watch import HarmWatch
from cluster.numerics.push_metrics import PushWarnings, push_metrics
from cluster.run.outcome import GroupOutcome
from cluster.runtime.work_log import Work, WorkLog
from cluster.trackers.trackers import Trackers
from cluster.training_view import TrainingView
from common.config import Learner as LearnerConfig
from common.evaluation import count_reasons
from common.journal import Journal
from common.metrics import MetricsWriter, read_lines
from common.records import (
    Dropped,
    LoadReport,
    PreferencePair,
    ProbeAnswer,
    ProbeReading,
    WeightManifest,
)
from common.row_faults import first_cases

log = logging.getLogger("sightline")

Show: TypeAlias = Callable[[Mapping[str, float]], object]


class Recorder:
    """One method for everything that can happen in a run. Journal events are durable after the next `step`.

    `watch` looks at groups and steps, `trackers` are told of both; None for none. `show` is given the metrics of every
    step.
    """

    def __init__(
        self,
        run_dir: Path,
        watch: HarmWatch | None = None,
        show: Show = dict,
        trackers: Trackers | None = None,
    ) -> None:
        self._show = show
        self.pairs = OnlinePairs(run_dir / "pairs")
        self.work = WorkLog(self._worked)
        self._run_dir = run_dir
        self._watch = watch
        self._trackers = trackers
        self._journal = Journal(run_dir / "journal" / "events.jsonl")
        # Accepted since the last checkpoint; a resume samples them again.
        self._unsaved_pairs: list[PreferencePair] = []
        self._training: _Training | None = None
        self._push_metrics: dict[str, float] = {}
        self._push_warnings = PushWarnings()
        # Workers that were replaced since this process began, by kind.
        self._num_restarts: Counter[str] = Counter()

    def start(
        self, reports: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]
    ) -> None:
        """All workers are ready; `reports` say what they are, `seconds` how long each of them took."""
        self._journal.write("start", workers=reports, seconds=seconds)

    def row(self, dropped: Dropped) -> None:
        """A row of a data set cannot be used."""
        self._journal.write(
            "row", id=dropped.id, outcome=dropped.reason, detail=dropped.detail
        )

    def data(
        self, num_prompts: int, num_offline: int, dropped: Sequence[Dropped]
    ) -> None:
        """What the run starts from, and which rows of its files it does not use."""
        for row in dropped:
            self.row(row)
        self._journal.write(
            "data",
            prompts=num_prompts,
            offline=num_offline,
            dropped=dict(count_reasons(dropped)),
            examples=first_cases(dropped),
        )

    def unused(self, counts: Mapping[str, int], examples: Mapping[str, str]) -> None:
        """Groups and pairs that were not trained on, by reason, at the end of the training."""
        self._journal.write("unused", dropped=dict(counts), examples=dict(examples))

    def config_changed(self, key: str, before: Any, now: Any) -> None:
        """A resumed run goes on with another value of this key."""
        self._journal.write("config_changed", key=key, before=before, now=now)

    def resume(self, step: int) -> None:
        """The run continues from the checkpoint of `step`; 0 is the start policy."""
        # What came after it is sampled again.
        self._unsaved_pairs.clear()
        self._journal.write("resume", step=step)

    def _worked(self, work: Work) -> None:
        """A worker has answered a call."""
        assert work.end is not None
        self._journal.write(
            "work",
            who=work.who,
            what=work.what,
            seconds=round(work.end - work.begin, 4),
            count=work.count,
        )

    def restart(self, name: str, cause: str, log: str, seconds: float) -> None:
        """Another worker took the place of one that was lost; `seconds` passed until it could be asked."""
        kind = name.partition("/")[0]
        self._num_restarts[kind] += 1
        self._journal.write(
            "restart", name=name, cause=cause, log=log, seconds=round(seconds, 3)
        )

    def ended(self, status: int, why: str = "") -> None:
        """The run has come to its end, or to this one."""
        self._journal.write("ended", status=status, why=why)
        self._journal.sync()

    @contextmanager
    def tracking(self) -> Iterator[None]:
        """At its end the trackers, which a training opens, are told whether the run has failed."""
        failed = True
        try:
            yield
            failed = False
        finally:
            if self._trackers is not None:
                self._trackers.close(failed)

    @contextmanager
    def training(self, learner: LearnerConfig, steps_done: int) -> Iterator[None]:
        """Count steps up to `learner.num_steps`; afterwards the pair set is whole."""
        # Of checkpoints that a kill interrupted; the next ones may be of other steps.
        self.pairs.forget_after(steps_done)
        metrics = MetricsWriter(self._run_dir, steps_done + 1)
        if self._watch is not None:
            self._watch.replay(read_lines(self._run_dir / "metrics.jsonl"))
        if self._trackers is not None:
            self._trackers.open(steps_done + 1)
        try:
            with TrainingView(
                self._run_dir.name,
                learner.num_steps,
                steps_done,
                learner.global_batch,
                self.work,
            ) as view:
                self._training = _Training(metrics, view)
                yield
        finally:
            metrics.close()
            self._journal.sync()
        # Not in `finally`: pairs.parquet says that the run has ended well.
        self.pairs.finish()

    def group(self, source: str, outcome: GroupOutcome) -> None:
        """A group became pairs, which belong to the next checkpoint, or was dropped."""
        # Written with the next checkpoint, whose state counts them as accepted.
        self._unsaved_pairs += outcome.pairs
        if self._watch is not None:
            self._watch.group(outcome)
        if self._trackers is not None:
            self._trackers.group(outcome)
        self._journal.write(
            "group", id=outcome.group_id, source=source, **outcome.journal_fields()
        )

    def discard(self, dropped: Dropped, num_uses: int = 0) -> None:
        """A pair is not trained on after all, or not again after `num_uses` times."""
        # As before where no pair comes again.
        uses = {"uses": num_uses} if num_uses else {}
        self._journal.write(
            "discard",
            id=dropped.id,
            reason=dropped.reason,
            detail=dropped.detail,
            **uses,
        )

    def batch(
        self,
        step: int,
        version: int,
        pair_ids: Sequence[str],
        num_online: int,
        num_reused: int = 0,
    ) -> None:
        """The learner trained on these pairs, `num_reused` of them once more; before, the weights were of `version`."""
        reused = {"reused": num_reused} if num_reused else {}
        self._journal.write(
            "step",
            step=step,
            version=version,
            pairs=list(pair_ids),
            online=num_online,
            **reused,
        )

    def probe(
        self, answers: Sequence[ProbeAnswer], readings: Sequence[ProbeReading]
    ) -> None:
        """Engines and learner hold the start policy, and differ by so much; `readings` are by engine."""
        self._journal.write(
            "probe",
            prompts=[answer.prompt.id for answer in answers],
            tokens=sum(len(answer.token_ids) for answer in answers),
            readings=[asdict(reading) for reading in readings],
        )

    def publish(self, manifest: WeightManifest, reports: Sequence[LoadReport]) -> None:
        """All engines hold new weights; what was measured of them is part of the next step's metrics."""
        self._push_metrics = push_metrics(manifest, reports)
        for warning in self._push_warnings.new(manifest, reports):
            log.warning(warning)
        probe_errors = [report.probe_error for report in reports]
        self._journal.write(
            "publish",
            version=manifest.version,
            checksum=manifest.checksum,
            change_norm=manifest.change_norm,
            probe_error=probe_errors,
            **self._push_metrics,
        )

    def no_validation(self) -> None:
        """There are no validation prompts, so the last checkpoint becomes the policy."""
        self._journal.write("no_validation", picks="last")

    def validation(self, step: int, scores: Mapping[str, Any]) -> None:
        """The weights after `step` were scored on the validation split of one suite."""
        self._journal.write("validation", step=step, **scores)

    def picked(self, step: int, by: Literal["validation", "last"]) -> None:
        """The checkpoint of `step` became the policy."""
        self._journal.write("picked", step=step, by=by)

    def sync(self) -> None:
        """Bring every event so far to disk."""
        self._journal.sync()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is over: its events and metrics are on disk when this returns."""
        assert self._training is not None, "steps are recorded inside `training`"
        if self._watch is not None:
            metrics = {**metrics, **self._watch.take()}
            for alert in self._watch.step(step, metrics):
                log.warning(alert.line)
                self._journal.write("warning", **asdict(alert))
        # The journal first: a step in metrics.jsonl always has its pairs there.
        self._journal.sync()
        restarts: dict[str, float] = {}
        for kind, count in self._num_restarts.items():
            restarts[f"restarts/{kind}"] = float(count)
        values = {**metrics, **restarts, **self._push_metrics}
        self._push_metrics = {}
        self._training.step(step, values)
        if self._trackers is not None:
            self._trackers.step(step, values)
        self._show({"step": step, **values})

    def begin_checkpoint(self, step: int) -> Sequence[PreferencePair]:
        """The state of the run is taken now: what follows the line `saving` in the journal is not part of it.

        Returns:
            The pairs that the checkpoint has to bring to disk.
        """
        pairs, self._unsaved_pairs = self._unsaved_pairs, []
        self._journal.write("saving", step=step)
        self._journal.sync()
        return pairs

    async def write_pairs(self, step: int, pairs: Sequence[PreferencePair]) -> None:
        """Bring to disk what a resume from the checkpoint of `step` will not repeat."""
        # In a thread: pictures from elsewhere are copied, and the run goes on meanwhile.
        for dropped in await asyncio.to_thread(self.pairs.write, step, pairs):
            self.row(dropped)
        self._journal.sync()

    def unsaved(self, step: int, pairs: Sequence[PreferencePair], reason: str) -> None:
        """The checkpoint of `step` cannot be written: its pairs belong to the next one."""
        self.pairs.forget(step)
        self._unsaved_pairs = [*pairs, *self._unsaved_pairs]
        self._journal.write("unsaved", step=step, reason=reason)
        self._journal.sync()

    def checkpoint(
        self,
        step: int,
        score: float | None,
        best_step: int | None,
        seconds: Mapping[str, float],
    ) -> None:
        """The checkpoint of `step` is whole; `seconds` says how long it was copied and written."""
        self._journal.write(
            "checkpoint",
            step=step,
            score=score,
            best_step=best_step,
            **seconds,
        )


@dataclass(frozen=True, slots=True)
class _Training:
    """What is told of every step."""

    metrics: MetricsWriter
    view: TrainingView

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.metrics.write(step, metrics)
        self.view.step(step, metrics)

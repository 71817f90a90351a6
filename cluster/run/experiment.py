"""One run from its config to its scorecard: start the workers, measure the start policy, train, measure the result."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress

from cluster.entry import status_of
from cluster.evaluation.run_scores import RunScoring
from cluster.harm.watch import HarmWatch
from cluster.last_words import line_of
from cluster.numerics.probe_answers import probe_answers
from cluster.placement.bundles import Bundle
from cluster.run.crew import Crew, WorkerTypes
from cluster.run.loop import Loop
from cluster.run.recorder import Recorder
from cluster.run.run_dir import RunDir
from cluster.run.training_data import ROWS, TrainingData, load_training_data
from cluster.runtime.clients import RolloutClient, Workers
from cluster.signals import EndRequests, Interrupted
from cluster.supervision.seat import Seat, WorkerLost
from cluster.trackers.trackers import Trackers
from common.chat import encoder_of
from common.config import Lora, RunConfig
from common.errors import Halted, RunFailed
from common.evaluation import Score
from common.paths import replace_directory
from common.protocols import Runtime
from common.push.adapter import against_adapter
from common.records import Dropped, ProbeAnswer
from common.row_faults import drop_report
from reward.suites.scorecard import Scorecard

log = logging.getLogger("sightline")

MAX_LOSSES = 3
"""Losses of the learner without a newer checkpoint, before the run stops: what it dies of would come again."""


class Experiment:
    """The controller's side of one run."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: RunDir,
        runtime: Runtime,
        bundles: Sequence[Bundle],
        types: WorkerTypes | None = None,
    ) -> None:
        # Absolute: a worker on another node may start in another folder.
        run = config.run.model_copy(update={"dir": run_dir.path})
        self.config = config = config.model_copy(update={"run": run})
        self.run_dir = run_dir
        self.runtime = runtime
        trackers = Trackers(config, run_dir.path)
        watch = HarmWatch(config)
        self._recorder = Recorder(run_dir.path, watch, runtime.show, trackers)
        types = types or WorkerTypes()
        self._crew = Crew(config, run_dir, runtime, bundles, types, self._recorder)
        self._loop: Loop | None = None
        self._ending: Interrupted | None = None
        # In a row, and the step of the newest checkpoint then.
        self._num_losses = 0
        self._lost_behind = 0
        # Empty until the engines are measured.
        self._probe: Sequence[ProbeAnswer] = ()
        self._scoring = RunScoring(config, run_dir.path, self._recorder)

    async def run(self) -> tuple[Scorecard, Scorecard]:
        """Train and score; returns the scorecards of the start policy and of the picked policy on the test split."""
        with self._recorder.tracking():
            try:
                cards = await self._run()
            except Exception as error:
                # A full disk must not hide what came before it.
                with suppress(OSError):
                    self._recorder.ended(status_of(error), line_of(error))
                raise
            self._recorder.ended(0)
            return cards

    async def _run(self) -> tuple[Scorecard, Scorecard]:
        # A checkpoint that cannot be read is refused before anything starts.
        self.run_dir.latest()
        for change in self.run_dir.changes:
            log.warning("%s: %r before, %r now", change.key, change.before, change.now)
            self._recorder.config_changed(change.key, change.before, change.now)
        data = self._load_data()
        self._scoring.announce()
        self._say_what_is_pushed()
        workers = await self._crew.start(data)
        async with self._crew.watching():
            return await self._train_and_score(data, workers)

    def _say_what_is_pushed(self) -> None:
        """Adapters are merged where that was not asked for: say why."""
        model, rollout = self.config.model, self.config.rollout
        tuning = model.tuning
        if isinstance(tuning, Lora) and tuning.push == "auto":
            reason = against_adapter(model, rollout)
            if reason is not None:
                log.warning("pushes carry merged weights: the policy has %s", reason)

    async def _train_and_score(
        self, data: TrainingData, workers: Workers
    ) -> tuple[Scorecard, Scorecard]:
        # All engines hold the start policy now, in a resumed run as well: the loop has not loaded its checkpoint yet.
        baseline = await self._scoring.score("baseline", workers.rollout, (), None)
        await self._scoring.ask_start(workers.rollout)
        await self._train(data, workers)
        # Their CPUs and GPUs are those of the engines that are started next.
        self._crew.stop_training(workers)
        self._take_best()
        engines: list[RolloutClient] = []
        if self._scoring.asks_anything:
            engines = await self._crew.start_engines(str(self.run_dir.policy))
        final = await self._scoring.score(
            "final", engines, workers.reward, baseline.answers
        )
        self._recorder.sync()
        return self._scoring.write_report(baseline, final)

    def _load_data(self) -> TrainingData:
        """Prompts and offline pairs; rows that cannot be used are counted in the journal."""
        dropped: list[Dropped] = []
        store = self._recorder.pairs.store
        data = load_training_data(self.config, store, dropped)
        num_prompts, num_offline = len(data.prompts), len(data.offline)
        self._recorder.data(num_prompts, num_offline, dropped)
        print(f"data: {num_prompts:,} prompts, {num_offline:,} offline pairs")
        if dropped:
            print(f"data: {len(dropped):,} rows not used, {drop_report(dropped)}")
        return data

    async def _train(self, data: TrainingData, workers: Workers) -> None:
        """Train to the end; a learner that is lost goes on from the last checkpoint."""
        lost: Seat | None = None
        with EndRequests(self._end):
            while True:
                try:
                    if lost is not None:
                        await self._crew.restart_learner(lost, workers)
                    self._end_if_asked()
                    await self._run_loop(data, workers)
                    # Nobody looks behind the last step.
                    self._end_if_asked()
                    break
                except Exception as error:
                    was_training = self._loop is not None
                    self._loop = None
                    lost = await self._lost_rank(error)
                    if lost is None:
                        raise
                    # What was trained since the last checkpoint is lost with the rank.
                    if self._ending is not None:
                        raise self._ending from error
                    if was_training:
                        self._count_loss(lost)
        shutil.rmtree(self.run_dir.path / ROWS, ignore_errors=True)

    async def _run_loop(self, data: TrainingData, workers: Workers) -> None:
        """Train from the newest checkpoint, or from the start policy."""
        crew = self._crew
        loop = self._loop = Loop(
            self.config,
            self.run_dir,
            workers,
            data,
            self._recorder,
            crew.weights,
            crew.turns,
        )
        await self._set_probe(loop, data, workers)

        async def validate(step: int) -> Score | None:
            return await self._scoring.validate(step, workers.rollout, workers.reward)

        with self._recorder.training(self.config.learner, loop.state.step):
            await loop.run(validate)
        loop.record_unused()

    async def _lost_rank(self, error: Exception) -> Seat | None:
        """The rank whose loss stopped the training; None where something else did."""
        if isinstance(error, Halted):
            return None
        if isinstance(error, RunFailed) and not isinstance(error, WorkerLost):
            return None
        return await self._crew.lost_rank()

    def _count_loss(self, lost: Seat) -> None:
        """Note that the learner was lost as it trained.

        Raises:
            RunFailed: it was lost too often behind the same checkpoint.
        """
        newest = self.run_dir.latest()
        step = 0 if newest is None else newest.state.step
        self._num_losses = self._num_losses + 1 if step == self._lost_behind else 1
        self._lost_behind = step
        if self._num_losses == MAX_LOSSES:
            raise RunFailed(
                f"{lost.fate}; expected a checkpoint behind step {step}, got the learner lost {MAX_LOSSES} times "
                "before it; look at its log"
            )

    def _end_if_asked(self) -> None:
        if self._ending is not None:
            raise self._ending

    def _end(self, reason: Interrupted) -> None:
        """A signal asks for an end."""
        self._ending = reason
        if self._loop is not None:
            self._loop.end_after_step(reason)

    async def _set_probe(
        self, loop: Loop, data: TrainingData, workers: Workers
    ) -> None:
        """Measure how far learner and engines are apart while all hold the start policy; every push is held to that.

        The ranks of a restarted learner get the same probe; the engines, which hold other weights by then, are
        measured already.

        Raises:
            UserError: no prompt can be given to the policy.
        """
        if self._probe:
            await workers.learner.set_probe(self._probe)
            return
        # Validation prompts, where there are some: nobody trains on them.
        prompt_sets = (self._scoring.validation_prompts(), data.prompts)
        encoder = encoder_of(self.config.model)
        engines = workers.rollout
        answers = await probe_answers(
            self.config.loop, encoder, prompt_sets, engines[0]
        )
        probe = await workers.learner.set_probe(answers)
        readings = await loop.calibrate(probe)
        self._recorder.probe(answers, readings)
        self._probe = answers

    def _take_best(self) -> None:
        """`policy/` is the checkpoint that validation picked."""
        checkpoint = self.run_dir.latest()
        assert checkpoint is not None, "the last step always leaves a checkpoint"
        best_step = checkpoint.state.best_step
        assert best_step is not None, "a checkpoint always knows the best one"
        self.run_dir.check_whole(self.run_dir.checkpoint(best_step))
        best = self.run_dir.checkpoint(best_step) / "policy"
        # Appears whole or not at all: a kill here must not leave half a policy.
        with replace_directory(self.run_dir.policy) as folder:
            shutil.copytree(best, folder, dirs_exist_ok=True)
        self._scoring.record_pick(best_step, checkpoint.state.best_score)

"""The asynchronous loop of one run: rollouts run ahead of the learner, by at most `max_staleness` weight versions.

    Sampler ────────ids──▶ Admission ──▶ RolloutWorker.generate ──RolloutGroup──▶ RewardWorker.rank
        ▲                  (per source)  RolloutWorker.bdhs_pairs ───────────────┐      │
        │                       ▲              (vLLM engine)                     │      │
        │ finish(id)            │ on_version(v)                    PreferencePair or Dropped(reason)
        └───────────────────────┼────────────────── Producer ◀───────────────────┴──────┘
                                │                      │ ReplayBuffer (online pool + offline pool)
                                │                      ▼ Mixture: pairs of each source in this step ─▶ Foresight
     RolloutWorker.load(v) ◀── publish ◀────── Learner.step (DeepSpeed ranks) ──▶ checkpoint, validation, journal

Everything here runs in one asyncio thread of the controller, which holds token ids and references; pixels and weights
never pass through it (`publish` returns a reference that the engines' nodes read themselves).

| who                 | waits for                                    | is unblocked by                               |
|---------------------|----------------------------------------------|-----------------------------------------------|
| Producer.work       | a place from Admission                       | on_version, a dropped group, a discarded pair |
|                     | a place with the judge                       | a call whose groups are judged                |
| Producer.batch      | enough fresh online pairs                    | a pair accepted by Producer.work              |
| Foresight.follow    | news of the next batch                       | a pair accepted by Producer.work              |
| Learner.step        | its batch                                    | Producer.batch                                |
| RolloutWorker.load  | the weights of version v, the engine's pause | publish                                       |
| validation          | version v in all engines                     | RolloutWorker.load                            |
| a checkpoint        | the one before it                            | CheckpointWriter, which writes beside steps   |

Engines and learner that share GPUs take turns: see `cluster/run/turns.py`.

Nothing waits in silence: Producer.batch and CheckpointWriter log a heartbeat and stop the run after
`loop.stall_limit_s`, every remote call has a limit, and an exception in any task ends all of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias

from cluster.checkpoints.writer import CheckpointWriter
from cluster.run.arrivals import Arrivals
from cluster.run.foresight import Foresight
from cluster.run.history import finished_groups
from cluster.run.producer import Producer
from cluster.run.recorder import Recorder
from cluster.run.run_dir import Checkpoint, RunDir
from cluster.run.state import RunState
from cluster.run.training_data import TrainingData
from cluster.run.turns import Turns
from cluster.runtime.clients import Workers
from cluster.sampling.prompt_sampler import restore
from cluster.sampling.reuse import reuse_metrics
from cluster.sampling.staleness import staleness
from cluster.sampling.value_pool import offline_metrics
from cluster.sampling.worth_sampler import prompt_metrics
from cluster.weights.engine_weights import EngineWeights
from common.config import RunConfig
from common.errors import Halted
from common.evaluation import Score
from common.records import (
    LogprobProbe,
    PreferencePair,
    ProbeReading,
)

log = logging.getLogger("sightline")

ROLLOUT_CALLS_IN_FLIGHT = 2
"""Per worker: while the groups of one call travel, the engine works on the other's."""

Validate: TypeAlias = Callable[[int], Awaitable[Score | None]]
"""Scores the weights that the engines hold after this step on the validation split.

None when nothing can be measured.
"""


class Loop:
    """Trains from the newest checkpoint, or from the start policy, to `learner.num_steps`."""

    _arrivals: Arrivals

    def __init__(
        self,
        config: RunConfig,
        run_dir: RunDir,
        workers: Workers,
        data: TrainingData,
        recorder: Recorder,
        weights: EngineWeights,
        turns: Turns,
    ) -> None:
        """Restore the controller's part of the newest checkpoint; `run` restores the workers'.

        Args:
            weights: what the engines hold, which may have had a loop before.
            turns: of them and the learner.

        Raises:
            UserError: the checkpoint cannot be read, or belongs to another offline set.
        """
        self._config = config
        self._run_dir = run_dir
        self._workers = workers
        self._recorder = recorder
        self._resumed_from = run_dir.latest()
        self.state = RunState.fresh(num_offline=len(data.offline))
        if self._resumed_from is not None:
            self.state = self._resumed_from.state
            groups = partial(finished_groups, run_dir.journal, self.state.step)
            restore(self.state.sampler, data.prompts, groups)
        self._forget_other_scores()
        self._weights = weights
        self._turns = turns
        self._checkpoints = CheckpointWriter(
            config, run_dir, workers.learner, recorder, self.state
        )
        self._producer = Producer(
            config, workers.reward, data, self.state, recorder, turns
        )
        self._ending: Halted | None = None
        # Kept, because the event loop holds tasks by weak references only.
        self._halting: asyncio.Task[None] | None = None
        self._foresight: Foresight | None = None
        if config.learner.input_workers:
            num_steps = config.learner.num_steps
            self._foresight = Foresight(self._producer, workers.learner, num_steps)

    async def run(self, validate: Validate) -> None:
        """Run both sides; whichever fails first ends the other and is raised."""
        try:
            await self._run_both(validate)
        except Exception as error:
            # What was begun is worth having, whatever stopped the run.
            try:
                await self._checkpoints.finish()
            except Exception as fault:
                # The user reads what stopped the run; this would hide it.
                log.warning("the checkpoint that was begun is lost: %s", fault)
            # Users read one line; a group stays as its cause.
            raise _first(error) from error
        await self._checkpoints.finish()

    async def calibrate(self, probe: LogprobProbe) -> Sequence[ProbeReading]:
        """How far learner and engines are apart, while all hold the start policy; called before `run`.

        Args:
            probe: the learner's, of the start policy.
        """
        readings = await self._weights.calibrate(probe)
        if not self._config.model.tuning.is_quantized:
            return readings
        # The learner's start policy is not the one in the files that engines read.
        async with self._weights.changing():
            delivered = await self._weights.publish(0)
        proven = [report.probe for report in delivered.reports]
        return [reading for reading in proven if reading is not None]

    def end_after_step(self, reason: Halted) -> None:
        """Save after the step that runs now, and raise `reason` from `run`."""
        self._ending = reason
        # A step that still waits for its pairs does not begin.
        self._halting = asyncio.create_task(self._producer.halt(reason))

    def record_unused(self) -> None:
        """Say what was sampled or read and not trained on, with an example of each reason."""
        drops = self.state.drops
        notes = self._producer.drop_notes
        self._recorder.unused(drops, notes.examples)
        if drops:
            print(f"training: {drops.total():,} not used, {notes.told(drops)}")

    def _forget_other_scores(self) -> None:
        """Let no score of another measure stand against those of this run."""
        state = self.state
        changed = state.measure_by(self._config.evaluation.model_dump(mode="json"))
        if changed:
            log.warning(
                "the best score so far, of step %s, was measured by another %s: the next checkpoint becomes the best",
                state.best_step,
                ", ".join(changed),
            )

    async def _resume(self, checkpoint: Checkpoint | None) -> None:
        """Bring the learner's state and the engines' weights to where the checkpoint was, or to the start policy."""
        self._recorder.resume(self.state.step)
        saved = self.state.weights
        async with self._weights.changing():
            if checkpoint is not None:
                notes = await self._workers.learner.load(checkpoint.learner)
                for note in notes:
                    log.warning(note)
            await self._arrivals.send(self.state.version)
            # Nothing is sampled, and nothing compared, before the engines hold it.
            await self._arrivals.wait()
        if saved is not None and saved != self.state.weights:
            log.warning(
                "resumed weights: expected checksum %s, as when the checkpoint was written, got %s",
                saved,
                self.state.weights,
            )

    async def _run_both(self, validate: Validate) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._arrivals = self._new_arrivals(tasks)
            if self._resumed_from is not None or self._weights.are_unknown:
                await self._resume(self._resumed_from)
            # Where no engine is up the learner is not asked, and its loss would not be noticed.
            losing = tasks.create_task(self._workers.learner.until_lost())
            producing: list[asyncio.Task[None]] = [losing]
            if self._foresight is not None:
                following = tasks.create_task(self._foresight.follow())
                producing.append(following)
            for worker in self._workers.rollout:
                for _ in range(ROLLOUT_CALLS_IN_FLIGHT):
                    task = tasks.create_task(self._producer.work(worker))
                    producing.append(task)
            await self._learn(validate)
            # The last step is trained: groups still in flight are nobody's.
            for task in producing:
                task.cancel()

    def _new_arrivals(self, tasks: asyncio.TaskGroup) -> Arrivals:
        # Deterministic engines load at one point of the run, and those that take turns in theirs.
        is_fixed = self._config.rollout.deterministic or self._turns.are_taken
        return Arrivals(
            tasks,
            self._weights,
            self._producer,
            self.state,
            self._recorder,
            overlaps=not is_fixed,
        )

    async def _learn(self, validate: Validate) -> None:
        state = self.state
        num_steps = self._config.learner.num_steps
        while state.step < num_steps:
            step = state.step + 1
            is_last = step == num_steps
            try:
                if self._ending is not None:
                    raise self._ending
                batch, waited_s = await self._next_batch(step)
                metrics = await self._train_and_publish(step, batch)
            except Halted:
                await self._save_halted()
                raise
            metrics["time/wait_s"] = waited_s
            await self._turns.pass_to_engines()
            # The config makes every checkpoint follow a publish, so the engines hold what is scored.
            ends_interval = is_last or step % self._config.checkpoint.interval == 0
            metrics |= await self._checkpoints.take_metrics()
            if ends_interval:
                await self._arrivals.wait()
                score = await validate(step)
                if score is not None:
                    metrics["validation/score"] = score.value
                self._recorder.step(step, metrics)
                await self._checkpoints.save(step, score, is_last)
            else:
                self._recorder.step(step, metrics)

    async def _save_halted(self) -> None:
        """Keep the steps since the last checkpoint: what stopped the run was no fault of theirs."""
        await self._checkpoints.finish()
        state = self.state
        await self._arrivals.wait()
        if state.step > self._checkpoints.last_step:
            if state.step % self._config.loop.publish_interval:
                # The learner's weights are newer than the version that the engines hold.
                state.weights = None
            await self._checkpoints.save(state.step, None, is_last=True)
        await self._checkpoints.finish()

    async def _next_batch(self, step: int) -> tuple[list[PreferencePair], float]:
        """The pairs of a step, and the seconds that they were waited for; then it is the learner's turn."""
        start = time.monotonic()
        batch = await self._producer.batch(step, self.state.version)
        waited_s = time.monotonic() - start
        if self._foresight is not None:
            # Before the step: meanwhile the ranks hear of nothing.
            await self._foresight.tell(step + 1)
        await self._turns.pass_to_learner()
        return batch, waited_s

    async def _train_and_publish(
        self, step: int, batch: Sequence[PreferencePair]
    ) -> dict[str, float]:
        """One step, and the publish that belongs to it; engines that come back meanwhile wait for both."""
        state = self.state
        is_last = step == self._config.learner.num_steps
        async with self._weights.changing():
            metrics = await self._train(step, batch)
            state.step = step
            if is_last or step % self._config.loop.publish_interval == 0:
                metrics["time/publish_s"] = await self._arrivals.send(state.version + 1)
        return metrics

    async def _train(
        self, step: int, batch: Sequence[PreferencePair]
    ) -> dict[str, float]:
        """Train on a batch on every rank, and account for every pair of it."""
        version = self.state.version
        result, refused = await self._workers.learner.step(step, batch)
        # The journal says of every version that the engines hold it before it says what was trained after it.
        overlap_s = await self._arrivals.wait()
        # A step whose pairs are all refused leaves the weights as they were.
        if result.pair_ids:
            self.state.trained = True
        pair_of_id = {pair.id: pair for pair in batch}
        for dropped in refused:
            pair = pair_of_id[dropped.id]
            self._producer.discard(pair, dropped)
        uses = self._producer.uses
        num_online = num_reused = 0
        margins: dict[str, float] = {}
        for pair_id in result.pair_ids:
            if pair_of_id[pair_id].weight_version is not None:
                num_online += 1
                num_reused += uses.get(pair_id, 1) > 1
            elif pair_id in result.margins:
                margins[pair_id] = result.margins[pair_id]
        self._producer.note_offline(margins)
        self._recorder.batch(step, version, result.pair_ids, num_online, num_reused)
        return {
            **result.metrics,
            **self._batch_metrics(batch, version),
            "time/push_overlap_s": overlap_s,
        }

    def _batch_metrics(
        self, batch: Sequence[PreferencePair], version: int
    ) -> dict[str, float]:
        """Drops so far, the share of online pairs, and their ages."""
        metrics: dict[str, float] = {}
        for reason, count in self.state.drops.items():
            metrics[f"pairs/dropped/{reason}"] = float(count)
        ages: list[int] = []
        for pair in batch:
            age = staleness(pair, version)
            # Offline pairs have none.
            if age is not None:
                ages.append(age)
        num_online = len(ages)
        metrics["pairs/online_frac"] = num_online / len(batch)
        if ages:
            metrics["staleness/mean"] = sum(ages) / num_online
            metrics["staleness/max"] = float(max(ages))
        metrics["weight_version"] = float(version)
        metrics["pairs/accepted"] = float(self.state.accepted.total())
        if self._config.rollout.draw == "by_worth":
            metrics |= prompt_metrics(self.state.rounds)
        if self._config.mixture.online_uses > 1:
            metrics |= reuse_metrics(batch, self._producer.uses)
        if self._config.mixture.offline_draw == "by_value":
            metrics |= offline_metrics(self.state.buffer.values)
        return metrics


def _first(error: BaseException) -> BaseException:
    """The first error of a group, whose members may be groups again: tasks have tasks of their own."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

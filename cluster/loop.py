"""The asynchronous loop of one run: rollouts run ahead of the learner, by at most `max_staleness` weight versions.

    Frontier ──group ids──▶ Admission ──▶ RolloutWorker.generate ──RolloutGroup──▶ RewardWorker.rank
        ▲                  (per source)   RolloutWorker.bdhs_pairs ──────────────┐      │
        │                       ▲              (vLLM engine)                     │      │
        │ finish(id)            │ on_version(v)                    PreferencePair or Dropped(reason)
        └───────────────────────┼────────────────── Producer ◀───────────────────┴──────┘
                                │                      │ ReplayBuffer (online pool + offline pool)
                                │                      ▼ Mixture: pairs of each source in this step
     RolloutWorker.load(v) ◀── publish ◀────── Learner.step (DeepSpeed ranks) ──▶ checkpoint, validation, journal

Everything here runs in one asyncio thread of the controller, which holds token ids and references; pixels and weights
never pass through it (`publish` returns a reference that the engines' nodes read themselves).

| who                 | waits for                                   | is unblocked by                              |
|---------------------|---------------------------------------------|----------------------------------------------|
| Producer.work       | a place from Admission                      | on_version, a dropped group, a discarded pair |
| Producer.take       | enough fresh online pairs                   | a pair accepted by Producer.work             |
| Learner.step        | its batch                                   | Producer.take                                |
| RolloutWorker.load  | the weights of version v, the engine's pause | publish                                     |
| validation          | version v in all engines                    | RolloutWorker.load                           |

Nothing waits in silence: Producer.take logs a heartbeat and stops the run after `loop.stall_limit_s`, every remote
call has a limit, and an exception in any task ends all of them.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.producer import Producer
from cluster.progress import ProgressReport
from cluster.run_dir import RunDir
from cluster.waiting import answers
from common.config import RunConfig
from common.errors import UserError
from common.journal import Journal
from common.metrics import MetricsWriter
from common.paths import replace_directory, replace_file
from common.protocols import Handle
from common.records import Dropped, PreferencePair, StepResult, WeightManifest
from learner.mixture import Mixture, online_counts

ROLLOUT_CALLS_IN_FLIGHT = 2
"""Per worker: while one call's groups are ranked, the engine works on the other's."""


@dataclass(slots=True)
class Progress:
    """Where the run stands; this is what a checkpoint remembers beside the parts' own states."""

    step: int = 0
    version: int = 0
    best_step: int | None = None
    best_score: float = -1.0
    trained: bool = False
    """Whether any step has changed the weights."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The actors. `learner[0]` is the rank that publishes and exports."""

    rollout: Sequence[Handle]
    reward: Sequence[Handle]
    learner: Sequence[Handle]


class Loop:
    """Trains from `progress.step` to `learner.num_steps`."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: RunDir,
        workers: Workers,
        producer: Producer,
        mixture: Mixture,
        journal: Journal,
        metrics: MetricsWriter,
        bar: ProgressReport,
        validate: Callable[[int], Awaitable[float | None]],
        progress: Progress,
    ) -> None:
        """`validate(step)` scores the weights the engines hold now on the validation split, higher is better; None when
        nothing can be measured."""
        self._config = config
        self._run_dir = run_dir
        self._workers = workers
        self._producer = producer
        self._mixture = mixture
        self._journal = journal
        self._metrics = metrics
        self._bar = bar
        self._validate = validate
        self.progress = progress

    async def run(self) -> None:
        """Runs both sides; whichever fails first ends the other and is raised."""
        try:
            await self._run_both()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group

    async def _run_both(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            producers = [
                tasks.create_task(self._producer.work(worker))
                for worker in self._workers.rollout
                for _ in range(ROLLOUT_CALLS_IN_FLIGHT)
            ]
            await self._learn()
            for task in producers:
                task.cancel()

    async def publish(self, version: int) -> float:
        """Bring the learner's weights into every engine; returns the seconds it took.

        Raises:
            UserError: what arrived are not finite weights, or after training still those of the start policy.
        """
        start, limit = time.monotonic(), self._config.loop.call_timeout_s
        published = [
            learner.call_split("publish", 2, version)
            for learner in self._workers.learner
        ]
        manifest, tensors = published[0]
        reports = await answers(
            [w.call("load", manifest, tensors) for w in self._workers.rollout],
            limit,
            "rollout worker",
        )
        sent: WeightManifest = await manifest
        assert all(report.version == sent.version == version for report in reports)
        self._check_change(sent)
        self.progress.version = version
        await self._producer.on_version(version)
        self._journal.write(
            "publish", version=version, checksum=sent.checksum, change_norm=sent.change_norm,
            probe_error=[report.probe_error for report in reports],
        )  # fmt: skip
        return time.monotonic() - start

    def _check_change(self, sent: WeightManifest) -> None:
        if not math.isfinite(sent.change_norm):
            raise UserError(
                f"weight version {sent.version}: expected finite weights, got a change of norm {sent.change_norm} from "
                "the start policy; lower learner.optimizer.lr, or start from another checkpoint"
            )
        if self.progress.trained and sent.change_norm == 0:
            raise UserError(
                f"weight version {sent.version}: expected trained weights, got exactly those of the start policy; "
                "raise learner.optimizer.lr, or look at what model.tuning trains"
            )

    async def _learn(self) -> None:
        loop, checkpoint, last = (
            self._config.loop,
            self._config.checkpoint,
            self._config.learner.num_steps,
        )
        while self.progress.step < last:
            step = self.progress.step + 1
            metrics = await self._train(step)
            self.progress.step = step
            if step % loop.publish_interval == 0 or step == last:
                metrics["time/publish_s"] = await self.publish(
                    self.progress.version + 1
                )
            due = step % checkpoint.interval == 0 or step == last
            score = await self._validate(step) if due else None
            if score is not None:
                metrics["validation/score"] = score
            self._journal.sync()
            self._metrics.write(step, metrics)
            if due:
                await self._checkpoint(step, score)
            self._bar.advance(self._note(metrics))

    def _note(self, metrics: dict[str, float]) -> str:
        rate = self._bar.rate * self._config.learner.global_batch
        return (
            f"{rate:.1f} pairs/s · staleness {metrics['staleness/mean']:.2f} · "
            f"margin {metrics.get('rewards/margins', 0.0):.3f} · loss {metrics.get('loss', 0.0):.3f}"
        )

    async def _train(self, step: int) -> dict[str, float]:
        """Form the batch of one step, train on it on every rank, and account for each of its pairs."""
        start = time.monotonic()
        version, size = self.progress.version, self._config.learner.global_batch
        online = await self._producer.take(
            online_counts(self._mixture, step - 1, self._config.online_sources), version
        )
        batch = online + self._producer.buffer.take_offline(size - len(online))
        waited = time.monotonic() - start
        result: StepResult
        result, refused = (await self._on_ranks("step", step, batch))[0]
        self.progress.trained |= bool(result.pair_ids)
        source_of = {pair.id: pair.source for pair in online}
        for dropped in refused:
            self._refuse(dropped, source_of.get(dropped.id))
        self._journal.write(
            "step", step=step, version=version, pairs=list(result.pair_ids)
        )
        return (
            dict(result.metrics)
            | self._batch_metrics(batch, version)
            | {"time/wait_s": waited}
        )

    def _refuse(self, dropped: Dropped, online_source: str | None) -> None:
        if online_source is not None:
            self._producer.discard(dropped, online_source)
        else:
            self._producer.drops[dropped.reason] += 1
            self._journal.write(
                "discard", id=dropped.id, reason=dropped.reason, detail=dropped.detail
            )

    def _batch_metrics(
        self, batch: Sequence[PreferencePair], version: int
    ) -> dict[str, float]:
        ages = [
            version - pair.weight_version
            for pair in batch
            if pair.weight_version is not None
        ]
        drops = {
            f"pairs/dropped/{reason}": float(count)
            for reason, count in self._producer.drops.items()
        }
        return drops | {
            "pairs/online_frac": len(ages) / len(batch),
            "staleness/mean": sum(ages) / len(ages) if ages else 0.0,
            "staleness/max": float(max(ages, default=0)),
            "weight_version": float(version),
        }

    async def _checkpoint(self, step: int, score: float | None) -> None:
        """Save everything in one directory that appears whole or not at all.

        What the run has made up to here must be on disk before: a resume from this checkpoint does not repeat it.
        Groups that settle while the ranks save belong to the next checkpoint, so nothing is awaited before the state,
        the pairs and the journal stand at the same place.
        """
        progress = self.progress
        # Without any score so far the last checkpoint is the one to take.
        never_scored = progress.best_score < 0
        is_best = never_scored if score is None else score >= progress.best_score
        if is_best:
            progress.best_step = step
            if score is not None:
                progress.best_score = score
        state = self._state()
        self._producer.save_pairs(step)
        self._journal.sync()
        with replace_directory(self._run_dir.checkpoint(step)) as folder:
            await self._on_ranks("save", str(folder / "learner"))
            if is_best:
                await self._on_ranks("export", str(folder / "policy"))
            replace_file(folder / "state.json", json.dumps(state))
        self._run_dir.keep(self._config.checkpoint.keep, progress.best_step)
        self._journal.write(
            "checkpoint", step=step, score=score, best_step=progress.best_step
        )

    def _state(self) -> dict[str, Any]:
        progress, producer = self.progress, self._producer
        return {
            "step": progress.step,
            "version": progress.version,
            "best_step": progress.best_step,
            "best_score": progress.best_score,
            "trained": progress.trained,
            "frontier": producer.frontier.state(),
            "buffer": producer.buffer.state_dict(),
            "accepted": {
                source: admission.accepted
                for source, admission in producer.admissions.items()
            },
            "drops": dict(producer.drops),
        }

    async def _on_ranks(self, method: str, *args: Any) -> list[Any]:
        """Every rank takes part in every call: their collectives must meet."""
        calls = [rank.call(method, *args) for rank in self._workers.learner]
        return await answers(calls, self._config.loop.call_timeout_s, "learner")

"""One run from its config to its scorecard: start the workers, measure the start policy, train, measure the result."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.rollout import RolloutWorker
from cluster.evaluation.run_scores import RunScoring
from cluster.numerics.probe_answers import probe_answers
from cluster.run.loop import Loop
from cluster.run.recorder import Recorder
from cluster.run.run_dir import RunDir
from cluster.run.run_files import files_of
from cluster.run.training_data import ROWS, TrainingData, load_training_data
from cluster.runtime.clients import LearnerClient, RewardClient, RolloutClient, Workers
from cluster.runtime.judge_engines import JudgeEngines
from cluster.runtime.placement import Bundle
from cluster.signals import EndRequests
from common.chat import encoder_of
from common.config import Lora, RunConfig
from common.config.pushing import against_adapter
from common.evaluation import Score
from common.paths import replace_directory
from common.protocols import Handle, Runtime
from common.records import Dropped
from common.row_faults import drop_report
from learner.learner import Learner
from reward.eyes.factory import EyeTools
from reward.suites.scorecard import Scorecard
from reward.worker import RewardWorker

log = logging.getLogger("sightline")


@dataclass(frozen=True, slots=True)
class WorkerTypes:
    """The classes that become actors; tests put fakes here."""

    rollout: type = RolloutWorker
    reward: type = RewardWorker
    learner: type = Learner


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
        self._bundles = {bundle.name: bundle for bundle in bundles}
        self._handles: dict[str, Handle] = {}
        self._types = types or WorkerTypes()
        self._recorder = Recorder(run_dir.path)
        self._scoring = RunScoring(config, run_dir.path, self._recorder)

    async def run(self) -> tuple[Scorecard, Scorecard]:
        """Train and score; returns the scorecards of the start policy and of the picked policy on the test split."""
        # A checkpoint that cannot be read is refused before anything starts.
        self.run_dir.latest()
        for change in self.run_dir.changes:
            log.warning("%s: %r before, %r now", change.key, change.before, change.now)
            self._recorder.config_changed(change.key, change.before, change.now)
        data = self._load_data()
        self._scoring.announce()
        workers = await self._start_workers(data)
        # All engines hold the start policy now, in a resumed run as well: the loop has not loaded its checkpoint yet.
        baseline = await self._scoring.score("baseline", workers.rollout, (), None)
        await self._scoring.ask_start(workers.rollout)
        await self._train(data, workers)
        # Their CPUs and GPUs are those of the engines that are started next.
        self._stop_training(workers)
        self._take_best()
        engines: list[RolloutClient] = []
        if self._scoring.asks_anything:
            engines = await self._start_engines(str(self.run_dir.policy))
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

    async def _start_workers(self, data: TrainingData) -> Workers:
        """Start every actor at once and wait until all say that they are ready."""
        config = self.config
        limit_s = config.loop.call_timeout_s
        files = files_of(config, self.run_dir.path, data)
        await files.check_nodes(self.runtime, limit_s)
        # Before the ranks, which may share their GPUs.
        engines = self._spawn_engines()
        ranks = self._spawn_ranks()
        judge_engines = JudgeEngines(config, self.runtime, self._types.rollout)
        judges: list[RewardClient] = []
        for index in range(config.reward.num_workers):
            judges.append(self._spawn_reward(index, judge_engines))
        workers = Workers(engines, judges, LearnerClient(ranks, limit_s))
        in_turns = config.cluster.placement == "colocated"
        start = workers.start_in_turns() if in_turns else workers.start()
        handles = {**self._handles, **judge_engines.handles}
        # Asked first, and so answered before any model is loaded.
        looks = files.check(handles, limit_s)
        _, reports, _ = await asyncio.gather(looks, start, judge_engines.start())
        self._recorder.start(reports)
        # Learner ranks come first, and rank 0 speaks for all of them.
        fallbacks = reports[0]["fallbacks"]
        for switch, reason in fallbacks.items():
            log.warning("learner.fast.%s is off: %s", switch, reason)
        self._say_what_is_pushed()
        return workers

    def _say_what_is_pushed(self) -> None:
        """Adapters are merged where that was not asked for: say why."""
        model, rollout = self.config.model, self.config.rollout
        tuning = model.tuning
        if isinstance(tuning, Lora) and tuning.push == "auto":
            reason = against_adapter(model, rollout)
            if reason is not None:
                log.warning("pushes carry merged weights: the policy has %s", reason)

    def _stop_training(self, workers: Workers) -> None:
        """Stop learner and engines; the reward workers compare the final answers."""
        for engine in workers.rollout:
            self.runtime.stop(engine.handle)
        for rank in workers.learner.handles:
            self.runtime.stop(rank)

    def _spawn_ranks(self) -> list[Handle]:
        num_ranks = self.config.learner.num_ranks
        ranks: list[Handle] = []
        for rank in range(num_ranks):
            name = f"learner/{rank}"
            worker = self._types.learner
            ranks.append(self._spawn(name, worker, self.config, rank, num_ranks))
        return ranks

    def _spawn_engines(self, *model_path: str) -> list[RolloutClient]:
        """All rollout workers, of the start policy or of another one."""
        worker = self._types.rollout
        engines: list[RolloutClient] = []
        for index in range(self.config.rollout.num_workers):
            name = f"rollout/{index}"
            handle = self._spawn(name, worker, self.config, index, *model_path)
            engines.append(RolloutClient(handle, self.config.loop.call_timeout_s))
        return engines

    async def _start_engines(self, model_path: str) -> list[RolloutClient]:
        """Start engines with a policy of a directory."""
        engines = self._spawn_engines(model_path)
        await asyncio.gather(*[engine.start() for engine in engines])
        return engines

    def _spawn_reward(self, index: int, judge_engines: JudgeEngines) -> RewardClient:
        name = f"reward/{index}"
        tools = EyeTools(
            judge_engines.clients,
            replies=self.run_dir.path / "judge" / str(index),
            num_spenders=self.config.reward.num_workers,
        )
        handle = self._spawn(name, self._types.reward, self.config, None, tools)
        return RewardClient(handle, self.config.loop.call_timeout_s)

    def _spawn(self, name: str, worker: type, *args: Any) -> Handle:
        bundle = self._bundles[name]
        handle = self.runtime.spawn(
            worker,
            *args,
            name=name,
            num_cpus=bundle.num_cpus,
            num_gpus=bundle.num_gpus,
        )
        self._handles[name] = handle
        return handle

    async def _train(self, data: TrainingData, workers: Workers) -> None:
        loop = Loop(self.config, self.run_dir, workers, data, self._recorder)
        await self._set_probe(loop, data, workers)

        async def validate(step: int) -> Score | None:
            return await self._scoring.validate(step, workers.rollout, workers.reward)

        with (
            EndRequests(loop.end_after_step),
            self._recorder.training(self.config.learner, loop.state.step),
        ):
            await loop.run(validate)
        loop.record_unused()
        shutil.rmtree(self.run_dir.path / ROWS, ignore_errors=True)

    async def _set_probe(
        self, loop: Loop, data: TrainingData, workers: Workers
    ) -> None:
        """Measure how far learner and engines are apart while all hold the start policy; every push is held to that.

        Raises:
            UserError: no prompt can be given to the policy.
        """
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

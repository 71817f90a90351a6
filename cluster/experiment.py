"""One run from its config to its scorecard: start the workers, measure the start policy, train, measure the result."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.rollout import RolloutWorker
from cluster.admission import Admission
from cluster.clients import RewardClient, RolloutClient
from cluster.frontier import Frontier
from cluster.loop import Loop, Progress, Workers
from cluster.online_pairs import OnlinePairs
from cluster.placement import Bundle
from cluster.producer import Producer
from cluster.progress import ProgressReport
from cluster.run_dir import RunDir, Saved
from cluster.scoring import RunScoring
from cluster.training_data import check_sources, load_offline, load_prompts
from cluster.waiting import answer, answers
from common.chat import ChatEncoder
from common.config import RunConfig
from common.journal import Journal
from common.metrics import MetricsWriter
from common.paths import replace_directory
from common.protocols import Handle, Runtime
from common.records import Dropped, Prompt
from common.sources import ONLINE_BDHS
from learner.learner import Learner
from learner.mixture import Mixture, build_mixture, online_counts
from learner.replay import ReplayBuffer
from reward.scorecard import Scorecard
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
        self.config = config
        self.run_dir = run_dir
        self.runtime = runtime
        self._bundles = bundles
        self._types = types or WorkerTypes()
        self._pairs = OnlinePairs(run_dir.path / "pairs")
        self._journal = Journal(run_dir.path / "journal" / "events.jsonl")
        self._scoring = RunScoring(config, run_dir.path, self._journal.write)

    async def run(self) -> tuple[Scorecard, Scorecard]:
        """Train and score; returns the scorecards of the start policy and of the picked policy on the test split."""
        saved = self.run_dir.latest()
        prompts, offline = self._training_data()
        self._scoring.announce()
        workers = await self._start_workers()
        limit = self.config.loop.call_timeout_s
        rewards = RewardClient(workers.reward[0], limit)
        baseline = await self._scoring.score(
            "baseline", RolloutClient(workers.rollout[0], limit), rewards, None
        )
        await self._train(saved, prompts, offline, workers)
        for handle in (*workers.rollout, *workers.learner):
            self.runtime.stop(handle)
        self._take_best()
        final_worker = self._spawn(
            "rollout/0", self._types.rollout, self.config, 0, str(self.run_dir.policy)
        )
        await self._answer(final_worker.call("start"), "rollout worker")
        final = await self._scoring.score(
            "final", RolloutClient(final_worker, limit), rewards, baseline.answers
        )
        self._journal.sync()
        return self._scoring.write_report(baseline, final)

    def _training_data(self) -> tuple[list[Prompt], list[Any]]:
        """Prompts to sample from and offline pairs; rows that cannot be used are counted in the journal."""
        config, dropped = self.config, list[Dropped]()
        prompts = load_prompts(config, self._pairs.store, dropped)
        offline = load_offline(config, dropped)
        check_sources(config, offline)
        for row in dropped:
            self._journal.write("row", id=row.id, outcome=row.reason, detail=row.detail)
        return prompts, offline

    async def _start_workers(self) -> Workers:
        """Start every actor at once and wait until each says that it is ready."""
        config, types, ranks = self.config, self._types, self.config.learner.num_ranks
        learner = [
            self._spawn(f"learner/{i}", types.learner, config, i, ranks)
            for i in range(ranks)
        ]
        rollout = [
            self._spawn(f"rollout/{i}", types.rollout, config, i)
            for i in range(config.rollout.num_workers)
        ]
        reward = [
            self._spawn(f"reward/{i}", types.reward, config)
            for i in range(config.reward.num_workers)
        ]
        address = await self._answer(learner[0].call("rendezvous"), "learner")
        starting = [handle.call("start", *address) for handle in learner] + [
            h.call("start") for h in rollout
        ]
        ready = await self._answers(starting, "a worker that starts")
        self._journal.write("start", workers=ready)
        for switch, reason in ready[0]["fallbacks"].items():
            log.warning("learner.fast.%s is off: %s", switch, reason)
        return Workers(rollout, reward, learner)

    async def _answer(self, reference: Awaitable[Any], peer: str) -> Any:
        return await answer(reference, self.config.loop.call_timeout_s, peer)

    async def _answers(
        self, references: Sequence[Awaitable[Any]], peer: str
    ) -> list[Any]:
        return await answers(references, self.config.loop.call_timeout_s, peer)

    def _spawn(self, name: str, worker: type, *args: Any) -> Handle:
        bundle = next(bundle for bundle in self._bundles if bundle.name == name)
        return self.runtime.spawn(
            worker, *args, name=name, num_cpus=bundle.num_cpus, num_gpus=bundle.num_gpus
        )

    async def _train(
        self,
        saved: Saved | None,
        prompts: list[Prompt],
        offline: list[Any],
        workers: Workers,
    ) -> None:
        config, seed = self.config, self.config.run.seed
        by_prompt = config.data.offline is not None and config.data.offline.by_prompt
        buffer = ReplayBuffer(offline, seed, by_prompt)
        mixture = build_mixture(config.mixture, config.learner, seed)
        progress = Progress()
        if saved is not None:
            best = saved.state["best_step"], saved.state["best_score"]
            progress = Progress(
                saved.step,
                saved.state["version"],
                *best,
                saved.state.get("trained", False),
            )
            buffer.load_state_dict(saved.state["buffer"])
            self._journal.write("resume", step=saved.step)
        frontier = Frontier(prompts, seed, saved.state["frontier"] if saved else None)
        admissions = self._admissions(
            mixture, progress.version, saved.state["accepted"] if saved else {}
        )
        producer = Producer(
            config,
            workers.reward,
            frontier,
            admissions,
            buffer,
            self._journal,
            self._pairs,
        )
        if saved is not None:
            producer.drops.update(saved.state["drops"])
        validation = self._scoring.validation_prompts()
        await self._set_probe(workers, (validation or prompts)[0])
        metrics = MetricsWriter(self.run_dir.path, progress.step + 1)

        engine = RolloutClient(workers.rollout[0], config.loop.call_timeout_s)

        async def validate(step: int) -> float | None:
            return await self._scoring.validate(step, engine)

        try:
            with ProgressReport(
                "training", config.learner.num_steps, progress.step
            ) as bar:
                loop = Loop(
                    config,
                    self.run_dir,
                    workers,
                    producer,
                    mixture,
                    self._journal,
                    metrics,
                    bar,
                    validate,
                    progress,
                )
                if saved is not None:
                    await self._answers(
                        [
                            rank.call("load", str(saved.learner))
                            for rank in workers.learner
                        ],
                        "learner",
                    )
                    await loop.publish(progress.version)
                await loop.run()
        finally:
            metrics.close()
            self._journal.sync()
        self._pairs.finish()

    def _admissions(
        self, mixture: Mixture, version: int, accepted: Mapping[str, int]
    ) -> dict[str, Admission]:
        """One per online source, with the pairs accepted before a resume."""
        loop, sources = self.config.loop, self.config.online_sources

        def need(source: str, step: int) -> int:
            return online_counts(mixture, step - 1, sources)[source]

        admissions = {
            source: Admission(
                partial(need, source),
                self.config.learner.num_steps,
                loop.publish_interval,
                loop.max_staleness,
                version,
                1 if source == ONLINE_BDHS else self.config.pairs_per_group,
            )
            for source in sources
        }
        for source, count in accepted.items():
            admissions[source].accepted = count
        return admissions

    async def _set_probe(self, workers: Workers, prompt: Prompt) -> None:
        """The learner will find log-probs of this answer with each published version, the engine must find the same."""
        encoder = ChatEncoder(self.config.model.path, self.config.model.max_length)
        response = encoder.encode_response(prompt.reference or "yes")
        await self._answers(
            [rank.call("set_probe", prompt, response) for rank in workers.learner],
            "learner",
        )

    def _take_best(self) -> None:
        """`policy/` is the checkpoint that validation picked."""
        saved = self.run_dir.latest()
        assert saved is not None, "the last step always leaves a checkpoint"
        best = self.run_dir.checkpoint(saved.state["best_step"]) / "policy"
        with replace_directory(self.run_dir.policy) as folder:
            shutil.copytree(best, folder, dirs_exist_ok=True)
        self._scoring.record_pick(saved.state["best_step"], saved.state["best_score"])

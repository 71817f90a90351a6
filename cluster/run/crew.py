"""The workers of one run: how they are spawned and started, and how those that are lost come back.

rollout/N   its engine is started in its turn, and caught up with the weights that the others hold
judge/N     its engine is started; then the reward workers are renewed, since they ask it themselves
reward/N    its judge is made
learner/N   all ranks are spawned and started anew; the loop then goes on from the last checkpoint
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from actors.rollout import RolloutWorker
from cluster.placement.bundles import Bundle
from cluster.run.recorder import Recorder
from cluster.run.run_dir import RunDir
from cluster.run.run_files import files_of
from cluster.run.training_data import TrainingData
from cluster.run.turns import Turns
from cluster.runtime.clients import LearnerClient, RewardClient, RolloutClient, Workers
from cluster.runtime.judge_engines import JudgeEngines
from cluster.supervision.restarts import Restarts
from cluster.supervision.seat import Revive, Seat, WorkerLost
from cluster.supervision.supervisor import Supervisor
from cluster.weights.engine_weights import EngineWeights
from cluster.weights.transport import transport_of
from common.config import RunConfig
from common.errors import UserError
from common.protocols import Handle, Runtime
from learner.learner import Learner
from reward.eyes.factory import EyeTools
from reward.worker import RewardWorker

log = logging.getLogger("sightline")

GOES_BACK = (
    "the run is deterministic, and the weights of an engine that died between two publishes cannot be sent "
    "again: going back to the last checkpoint"
)


@dataclass(frozen=True, slots=True)
class WorkerTypes:
    """The classes that become actors; tests put fakes here."""

    rollout: type = RolloutWorker
    reward: type = RewardWorker
    learner: type = Learner


class Crew:
    """Owns the actors of a run.

    Attributes:
        turns: of engines and learner. It and `weights` are there once `start` is called.
        weights: what the engines hold.
    """

    turns: Turns
    weights: EngineWeights

    def __init__(
        self,
        config: RunConfig,
        run_dir: RunDir,
        runtime: Runtime,
        bundles: Sequence[Bundle],
        types: WorkerTypes,
        recorder: Recorder,
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._runtime = runtime
        self._bundles = {bundle.name: bundle for bundle in bundles}
        self._types = types
        self._recorder = recorder
        self._limit_s = config.loop.call_timeout_s
        settings = config.cluster
        self._supervisor = Supervisor(
            runtime,
            Restarts(settings.max_restarts_per_hour),
            settings.heartbeat_limit_s,
            settings.start_timeout_s,
            recorder,
            run_dir.path,
        )
        self._ranks: list[Seat] = []
        self._judge_engines: JudgeEngines | None = None
        # Judges' engines that have started again, and are up once the reward workers know them.
        self._newcomers: list[Handle] = []

    def watching(self) -> AbstractAsyncContextManager[None]:
        """Within it, workers that die or hang are replaced."""
        return self._supervisor.watching()

    async def start(self, data: TrainingData) -> Workers:
        """Start every actor at once and wait until all say that they are ready."""
        config, limit_s = self._config, self._limit_s
        work = self._recorder.work
        files = files_of(config, self._run_dir.path, data)
        await files.check_nodes(self._runtime, limit_s)
        # Before the ranks, which may share their GPUs.
        engines = self._spawn_engines(self._revive_engine)
        self._ranks = self._spawn_ranks()
        judge_engines = JudgeEngines(
            config, self._spawn_judge_engine, self._types.rollout
        )
        self._judge_engines = judge_engines
        judges: list[RewardClient] = []
        for index in range(config.reward.num_workers):
            judges.append(self._spawn_reward(index))
        workers = Workers(engines, judges, LearnerClient(self._ranks, limit_s, work))
        self.turns = turns = Turns(config.cluster, workers)
        transport = transport_of(config, workers.learner, turns)
        go_back = self._go_back if config.rollout.deterministic else None
        self.weights = EngineWeights(engines, transport, turns, go_back)
        start = workers.start_in_turns() if turns.are_taken else workers.start()
        # Asked first, and so answered before any model is loaded.
        looks = files.check(self._supervisor.seats, limit_s)
        try:
            _, _, reports, _ = await asyncio.gather(
                self._supervisor.look(), looks, start, judge_engines.start()
            )
        except UserError:
            raise
        except Exception as error:
            lost = await self._supervisor.lost(tuple(self._supervisor.seats.values()))
            if lost is None:
                raise
            raise WorkerLost(lost) from error
        self._recorder.start(reports, self._supervisor.start_seconds())
        # Learner ranks come first, and rank 0 speaks for all of them.
        fallbacks: Mapping[str, str] = reports[0]["fallbacks"]
        for switch, reason in fallbacks.items():
            log.warning("learner.fast.%s is off: %s", switch, reason)
        return workers

    def stop_training(self, workers: Workers) -> None:
        """Stop learner and engines; the reward workers compare the final answers."""
        for engine in workers.rollout:
            self._supervisor.close(engine.handle)
        for rank in self._ranks:
            self._supervisor.close(rank)

    async def start_engines(self, model_path: str) -> list[RolloutClient]:
        """Start engines with a policy of a directory."""
        engines = self._spawn_engines(self._start_engine, model_path)
        await asyncio.gather(*[_start_or_wait(engine) for engine in engines])
        return engines

    async def lost_rank(self) -> Seat | None:
        """A rank of the learner that is lost, if any is."""
        return await self._supervisor.lost(self._ranks)

    async def restart_learner(self, lost: Seat, workers: Workers) -> None:
        """Bring new ranks in the place of all ranks, of which one is lost.

        Raises:
            RunFailed: the budget of restarts is used up.
        """
        begun = time.monotonic()
        cause, output = lost.cause, lost.log
        self.weights.forget_learner()
        # First: an engine that is being caught up may wait for ranks that hang.
        await self._supervisor.refill(self._ranks)
        async with self.turns.learner_starting():
            await workers.learner.start()
        seconds = time.monotonic() - begun
        log.warning(
            "the learner is back after %.1f s, and goes on from its last checkpoint",
            seconds,
        )
        self._recorder.restart(lost.name, cause, output, seconds)

    def _go_back(self) -> None:
        """Let the training begin again at its last checkpoint, as if a rank had died."""
        rank = self._ranks[0]
        self._supervisor.lose(rank, rank.number, GOES_BACK)

    def _spawn_ranks(self) -> list[Seat]:
        num_ranks = self._config.learner.num_ranks
        ranks: list[Seat] = []
        for rank in range(num_ranks):
            name = f"learner/{rank}"
            worker = self._types.learner
            ranks.append(self._seat(name, None, worker, self._config, rank, num_ranks))
        return ranks

    def _spawn_engines(self, revive: Revive, *model_path: str) -> list[RolloutClient]:
        """All rollout workers, of the start policy or of another one."""
        worker = self._types.rollout
        engines: list[RolloutClient] = []
        for index in range(self._config.rollout.num_workers):
            name = f"rollout/{index}"
            seat = self._seat(name, revive, worker, self._config, index, *model_path)
            client = RolloutClient(seat, self._limit_s, work=self._recorder.work)
            engines.append(client)
        return engines

    def _spawn_judge_engine(
        self, worker: type, *args: Any, name: str, **resources: float
    ) -> Handle:
        spawn = partial(self._runtime.spawn, worker, *args, name=name, **resources)
        return self._supervisor.seat(name, spawn, self._revive_judge_engine)

    def _spawn_reward(self, index: int) -> RewardClient:
        name = f"reward/{index}"
        bundle = self._bundles[name]
        worker = self._types.reward

        def spawn() -> Handle:
            return self._runtime.spawn(
                worker,
                self._config,
                None,
                self._eye_tools(index),
                name=name,
                num_cpus=bundle.num_cpus,
                num_gpus=bundle.num_gpus,
            )

        assert self._judge_engines is not None
        clients_of_eyes = self._judge_engines.clients.values()
        pools = [list(map(_seat_of, clients)) for clients in clients_of_eyes]
        seat = self._supervisor.seat(name, spawn, self._revive_reward, pools)
        return RewardClient(seat, self._limit_s, self._recorder.work)

    def _eye_tools(self, index: int) -> EyeTools:
        """What a reward worker sees with: the judge's engines that are there now."""
        assert self._judge_engines is not None
        engines = {}
        for eye, clients in self._judge_engines.clients.items():
            there = [client for client in clients if self._is_there(client)]
            # With none it cannot judge before it is renewed.
            engines[eye] = [_seated_now(client) for client in there or clients]
        return EyeTools(
            engines,
            replies=self._run_dir.path / "judge" / str(index),
            num_spenders=self._config.reward.num_workers,
        )

    def _is_there(self, client: RolloutClient) -> bool:
        seat = _seat_of(client)
        return seat.is_up or seat.handle in self._newcomers

    def _seat(self, name: str, revive: Revive | None, worker: type, *args: Any) -> Seat:
        bundle = self._bundles[name]
        spawn = partial(
            self._runtime.spawn,
            worker,
            *args,
            name=name,
            num_cpus=bundle.num_cpus,
            num_gpus=bundle.num_gpus,
        )
        return self._supervisor.seat(name, spawn, revive)

    async def _start_engine(self, handle: Handle) -> None:
        await RolloutClient(handle, self._limit_s).start()

    async def _revive_engine(self, handle: Handle) -> None:
        engine = RolloutClient(handle, self._limit_s)
        async with self.turns.starting():
            await engine.start()
        with self.turns.newcomer(engine):
            await self.weights.catch_up(engine)

    async def _revive_judge_engine(self, handle: Handle) -> None:
        await self._start_engine(handle)
        seats = self._supervisor.seats.values()
        rewards = [seat for seat in seats if seat.kind == "reward"]
        parts = [rewards]
        if any(seat.is_usable for seat in rewards):
            # One half judges with the other engines while the other half is renewed.
            parts = [rewards[::2], rewards[1::2]]
        self._newcomers.append(handle)
        try:
            for part in parts:
                await asyncio.gather(*map(self._supervisor.renew, part))
        finally:
            self._newcomers.remove(handle)

    async def _revive_reward(self, handle: Handle) -> None:
        await RewardClient(handle, self._limit_s).start()


async def _start_or_wait(engine: RolloutClient) -> None:
    # The supervisor starts another one in its place; who asks it waits for that.
    with suppress(WorkerLost):
        await engine.start()


def _seated_now(client: RolloutClient) -> RolloutClient:
    """A client of the worker itself: a reward worker in another process knows no seats."""
    return replace(client, handle=_seat_of(client).handle)


def _seat_of(client: RolloutClient) -> Seat:
    assert isinstance(client.handle, Seat)
    return client.handle

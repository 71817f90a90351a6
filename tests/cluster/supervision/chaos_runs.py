"""Whole runs with fakes whose workers are killed or hang in the middle of their calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.placement.bundles import plan as places_of
from cluster.run.auditing import audit
from cluster.run.crew import WorkerTypes
from cluster.run.experiment import Experiment
from cluster.run.run_dir import RunDir
from common.config import RunConfig
from common.metrics import read_lines
from common.protocols import GenerationRequest
from common.records import Dropped, Judged, PreferencePair, RolloutGroup, StepResult
from reward.worker import RewardWorker
from tests.cluster.runs import STEPS, make_config, trained_pairs
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker
from tests.fakes.runtime import LocalHandle, LocalRuntime

LIMIT_S = 0.5
# A hanging process is noticed before its push is given up.
BROADCAST = {"weights__transport": "broadcast", "weights__timeout_s": 2 * LIMIT_S}


class Chaos:
    """Does something to a worker in the middle of the n-th call of a kind, counted over all workers of the run."""

    def __init__(self, *plan: tuple[str, int, str]) -> None:
        """Triples of a method, the number of its call, and `kill`, `hang`, or `stall`: only that call hangs."""
        self.plan = list(plan)
        self.counts: dict[str, int] = {}
        # Of the workers that sit there now.
        self.handles: dict[str, LocalHandle] = {}

    async def strike(self, method: str, handle: LocalHandle) -> None:
        count = self.counts[method] = self.counts.get(method, 0) + 1
        for entry in self.plan:
            if entry[:2] == (method, count):
                self.plan.remove(entry)
                if entry[2] != "stall":
                    getattr(handle, entry[2])()
                # A killed process does not go on.
                await asyncio.Event().wait()


class ChaosRuntime(LocalRuntime):
    """Its workers meet chaos in the middle of their calls."""

    def __init__(self, chaos: Chaos) -> None:
        super().__init__()
        self.chaos = chaos
        chaos.handles = self.handles

    def spawn(self, worker: type, *args: Any, name: str, **resources: float) -> Any:
        handle = super().spawn(worker, *args, name=name, **resources)  # type: ignore[arg-type]
        handle.worker.strike = lambda method: self.chaos.strike(method, handle)
        return handle


class Rollout(FakeRolloutWorker):
    strike: Callable[[str], Any]

    async def generate(
        self, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        await self.strike("generate")
        return await super().generate(requests)

    async def load(self, *args: Any) -> Any:
        await self.strike("load")
        return await super().load(*args)

    async def receive(self, *args: Any) -> Any:
        await self.strike("receive")
        return await super().receive(*args)

    async def prove(self, *args: Any) -> Any:
        await self.strike("prove")
        return await super().prove(*args)


class Reward(RewardWorker):
    strike: Callable[[str], Any]

    async def start(self) -> None:
        await self.strike("start")
        await super().start()

    async def rank(self, groups: Any) -> list[Judged]:
        await self.strike("rank")
        return await super().rank(groups)


class Ranks(FakeLearner):
    strike: Callable[[str], Any]

    async def start(self, address: str, port: int) -> dict[str, Any]:  # type: ignore[override]
        await self.strike("learn")
        return super().start(address, port)

    async def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        await self.strike("step")
        return await super().step(step, pairs)


def config_of(tmp_path: Path, **changes: Any) -> RunConfig:
    values = {"cluster__heartbeat_limit_s": LIMIT_S, **changes}
    return make_config(tmp_path, **values)


def run(config: RunConfig, chaos: Chaos, rollout: type = Rollout) -> Path:
    """Run to the end with what chaos does; returns the run directory."""
    runtime = ChaosRuntime(chaos)
    types = WorkerTypes(rollout, Reward, Ranks)
    with RunDir(config, resume=False) as run_dir:
        experiment = Experiment(config, run_dir, runtime, places_of(config), types)
        asyncio.run(asyncio.wait_for(experiment.run(), 60))
    return run_dir.path


def check(run_dir: Path) -> None:
    """All steps, every pair once, and the account is right."""
    trained = trained_pairs(run_dir)
    assert len(trained) == len(set(trained)) == STEPS * 4
    assert audit(run_dir).faults == []
    lines = read_lines(run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))

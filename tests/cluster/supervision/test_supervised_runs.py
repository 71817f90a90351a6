"""Whole runs with fakes whose workers are killed or hang: they go on, and every group has one outcome."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.run.auditing import audit
from cluster.run.crew import GOES_BACK, WorkerTypes
from cluster.run.experiment import MAX_LOSSES, Experiment
from cluster.run.run_dir import RunDir
from cluster.runtime.placement import plan as places_of
from cluster.signals import Interrupted
from cluster.supervision import restarts
from common.config import RunConfig
from common.errors import RunFailed
from common.metrics import read_lines
from common.protocols import GenerationRequest
from common.records import Dropped, Judged, PreferencePair, RolloutGroup, StepResult
from reward.worker import RewardWorker
from tests.cluster.judged_runs import JudgingWorker, vlm
from tests.cluster.runs import STEPS, events, make_config, trained_pairs
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker
from tests.fakes.runtime import LocalHandle, LocalRuntime

LIMIT_S = 0.5
# A hanging process is noticed before its push is given up.
BROADCAST = {"weights__transport": "broadcast", "weights__timeout_s": 2 * LIMIT_S}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(restarts, "LONGEST_PAUSE_S", 0.01)


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


@pytest.mark.parametrize(("what", "workers"), [("kill", 1), ("hang", 2)])
@pytest.mark.parametrize("method", ["generate", "load", "rank", "step"])
def test_a_worker_that_is_lost_comes_back(
    tmp_path: Path, method: str, workers: int, what: str
) -> None:
    config = config_of(
        tmp_path, rollout__num_workers=workers, reward__num_workers=workers
    )
    chaos = Chaos((method, 5, what))
    run_dir = run(config, chaos)
    assert chaos.plan == []
    check(run_dir)
    (restart,) = events(run_dir, "restart")
    kind = restart["name"].partition("/")[0]
    kinds = {"rank": "reward", "step": "learner"}
    assert kind == kinds.get(method, "rollout")
    cause = "the fake has died" if what == "kill" else "it has said nothing for 0.5 s"
    assert restart["cause"] == cause
    assert read_lines(run_dir / "metrics.jsonl")[-1][f"restarts/{kind}"] == 1


@pytest.mark.parametrize(("what", "workers"), [("kill", 1), ("kill", 2), ("hang", 2)])
@pytest.mark.parametrize("method", ["receive", "prove"])
def test_an_engine_that_is_lost_in_a_broadcast_comes_back(
    tmp_path: Path, method: str, workers: int, what: str
) -> None:
    """With one engine the group waits for nobody else; with two, the other one gets the weights of this very push."""
    config = config_of(tmp_path, rollout__num_workers=workers, **BROADCAST)
    chaos = Chaos((method, 5, what))
    run_dir = run(config, chaos)
    assert chaos.plan == []
    check(run_dir)
    (restart,) = events(run_dir, "restart")
    assert restart["name"].startswith("rollout/")
    cause = "the fake has died" if what == "kill" else "it has said nothing for 0.5 s"
    assert restart["cause"] == cause


@pytest.mark.parametrize("workers", [1, 2])
def test_an_engine_that_lives_but_stalls_in_a_broadcast_is_replaced(
    tmp_path: Path, workers: int
) -> None:
    """Its heart beats, so that only who waits for its part of the push can tell."""
    config = config_of(tmp_path, rollout__num_workers=workers, **BROADCAST)
    chaos = Chaos(("receive", 5, "stall"))
    run_dir = run(config, chaos)
    assert chaos.plan == []
    check(run_dir)
    (restart,) = events(run_dir, "restart")
    assert restart["name"].startswith("rollout/")
    told = "got no answer within 1 s of the end of a weight push; "
    assert restart["cause"].startswith(told)


class JudgingRollout(JudgingWorker, Rollout):
    """An engine of the policy or of the judge; only the judge's is asked for scores while pairs are judged."""

    async def encode(self, answers: Any) -> Any:
        await self.strike("encode")
        return await super().encode(answers)


def test_the_reward_workers_get_another_engine_of_the_judge(tmp_path: Path) -> None:
    config = vlm(tmp_path, reward__num_workers=2, cluster__heartbeat_limit_s=LIMIT_S)
    chaos = Chaos(("encode", 2, "kill"))
    run_dir = run(config, chaos, JudgingRollout)
    check(run_dir)
    (restart,) = events(run_dir, "restart")
    assert restart["name"].startswith("judge/")
    assert restart["cause"] == "the fake has died"


class AgainInRenewal(Chaos):
    """Kills the first engine of the judge twice: the second time while the reward worker is renewed for it."""

    async def strike(self, method: str, handle: LocalHandle) -> None:
        await super().strike(method, handle)
        if (method, self.counts[method]) in (("encode", 2), ("start", 2)):
            self.handles["judge/0"].kill()
            # Its loss is noticed before the renewal is done.
            await asyncio.sleep(LIMIT_S)


def test_an_engine_of_the_judge_may_die_while_the_reward_worker_is_renewed(
    tmp_path: Path,
) -> None:
    config = vlm(tmp_path, cluster__heartbeat_limit_s=LIMIT_S)
    run_dir = run(config, AgainInRenewal(), JudgingRollout)
    check(run_dir)
    names = [event["name"] for event in events(run_dir, "restart")]
    assert names == ["judge/0"]
    # Once in the middle, and once when the engine was there for good.
    roster = json.loads((run_dir / "workers.json").read_text())
    assert roster["workers"]["reward/0"]["number"] == 2


def test_a_learner_lost_before_its_first_checkpoint_begins_again(
    tmp_path: Path,
) -> None:
    run_dir = run(config_of(tmp_path), Chaos(("step", 2, "kill")))
    check(run_dir)
    assert [event["step"] for event in events(run_dir, "resume")] == [0]
    versions = [event["version"] for event in events(run_dir, "publish")]
    assert versions == [1, 0, *range(1, STEPS + 1)]


def test_a_learner_goes_on_from_its_checkpoint_and_the_engines_stay(
    tmp_path: Path,
) -> None:
    run_dir = run(config_of(tmp_path), Chaos(("step", 7, "kill")))
    check(run_dir)
    assert [event["step"] for event in events(run_dir, "resume")] == [4]
    assert len(events(run_dir, "start")) == 1
    # The engines, which hold other weights by then, are not measured again.
    assert len(events(run_dir, "probe")) == 1
    assert [event["name"] for event in events(run_dir, "restart")] == ["learner/0"]


def test_a_learner_that_is_lost_again_and_again_ends_the_run(tmp_path: Path) -> None:
    """Always in step 7, behind the checkpoint of step 4; restarts alone would go on for ever."""
    chaos = Chaos(("step", 7, "kill"), ("step", 10, "kill"), ("step", 13, "kill"))
    config = config_of(tmp_path)
    told = "^learner/0: the fake has died.*; expected a checkpoint behind step 4, got"
    with pytest.raises(RunFailed, match=told):
        run(config, chaos)
    (ended,) = events(config.run.dir, "ended")
    assert ended["status"] == 1
    assert ended["why"].startswith("learner/0: the fake has died")


def test_losses_with_a_checkpoint_in_between_do_not_add_up(tmp_path: Path) -> None:
    """Two in steps 2 and 1, and two in step 7."""
    plan = [("step", call, "kill") for call in (2, 3, 10, 13)]
    chaos = Chaos(*plan)
    run_dir = run(config_of(tmp_path), chaos)
    assert chaos.plan == []
    check(run_dir)
    assert [event["step"] for event in events(run_dir, "resume")] == [0, 0, 4, 4]


class AskedAtRestart(Chaos):
    """SIGTERM comes while new ranks start."""

    async def strike(self, method: str, handle: LocalHandle) -> None:
        await super().strike(method, handle)
        if (method, self.counts[method]) == ("learn", 2):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.05)


def test_a_run_that_is_asked_to_end_loads_nothing_more(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with pytest.raises(Interrupted):
        run(config, AskedAtRestart(("step", 5, "kill")))
    assert events(config.run.dir, "restart") != []
    assert events(config.run.dir, "resume") == []


@pytest.mark.parametrize(
    ("transport", "method"), [("object_store", "load"), ("broadcast", "receive")]
)
def test_a_deterministic_run_is_the_same_after_deaths(
    tmp_path: Path, transport: str, method: str
) -> None:
    def result(folder: str, *plan: tuple[str, int, str]) -> tuple[object, object]:
        config = config_of(
            tmp_path / folder,
            rollout__deterministic=True,
            loop__max_staleness=0,
            **BROADCAST | {"weights__transport": transport},
        )
        chaos = Chaos(*plan)
        run_dir = run(config, chaos)
        assert chaos.plan == []
        checksums = {}
        for event in events(run_dir, "publish"):
            checksums[event["version"]] = event["checksum"]
        return trained_pairs(run_dir), checksums

    calm = result("calm")
    stormy = result(
        "stormy",
        ("generate", 4, "kill"),
        ("rank", 5, "hang"),
        (method, 3, "kill"),
        ("step", 6, "kill"),
    )
    assert calm == stormy


class BetweenPublishes(Chaos):
    """Kills an engine once, when the learner has done an odd number of steps: with two to a publish, it is ahead."""

    async def strike(self, method: str, handle: LocalHandle) -> None:
        await super().strike(method, handle)
        steps = self.counts.get("step", 0)
        if method == "generate" and steps > 2 and steps % 2 and not self.plan:
            self.plan.append(("done", 1, "kill"))
            handle.kill()
            await asyncio.Event().wait()


def test_between_publishes_a_deterministic_run_goes_back(tmp_path: Path) -> None:
    def result(folder: str, chaos: Chaos) -> Path:
        config = config_of(
            tmp_path / folder,
            rollout__deterministic=True,
            loop__max_staleness=0,
            loop__publish_interval=2,
        )
        run_dir = run(config, chaos)
        check(run_dir)
        return run_dir

    calm = result("calm", Chaos())
    stormy = result("stormy", BetweenPublishes())
    assert trained_pairs(stormy) == trained_pairs(calm)
    causes = [event["cause"] for event in events(stormy, "restart")]
    assert sorted(causes) == sorted(["the fake has died", GOES_BACK])


def test_too_many_restarts_end_the_run_with_the_cause(tmp_path: Path) -> None:
    config = config_of(tmp_path, cluster__max_restarts_per_hour=1)
    told = r"^rollout/0: the fake has died.*; expected at most 1 restarts an hour"
    with pytest.raises(RunFailed, match=told):
        run(config, Chaos(("generate", 3, "kill"), ("generate", 6, "kill")))


def test_an_error_of_a_worker_that_is_well_still_ends_the_run(tmp_path: Path) -> None:
    class Broken(Rollout):
        async def generate(self, requests: Any) -> Any:
            raise KeyError("a bug")

    config = config_of(tmp_path)
    with pytest.raises(KeyError, match="a bug"):
        run(config, Chaos(), Broken)
    assert events(config.run.dir, "restart") == []


def test_the_roster_says_who_runs_where(tmp_path: Path) -> None:
    run_dir = run(config_of(tmp_path), Chaos(("rank", 3, "kill")))
    roster = json.loads((run_dir / "workers.json").read_text())
    assert roster["controller"]["processes"][0]["pid"] > 0
    workers = roster["workers"]
    assert set(workers) == {"rollout/0", "reward/0", "learner/0"}
    assert workers["reward/0"]["number"] == 1
    assert workers["rollout/0"]["number"] == 0
    assert workers["rollout/0"]["processes"][0]["pid"] > 0


class SharedGpus(Chaos):
    """Says how many engines are awake when the learner has them: as its ranks start, and in every step."""

    def __init__(self, *plan: tuple[str, int, str]) -> None:
        super().__init__(*plan)
        self.num_awake: list[int] = []

    async def strike(self, method: str, handle: LocalHandle) -> None:
        if method == "learn":
            # Time enough for an engine to come back beside it.
            await asyncio.sleep(LIMIT_S)
        if method in ("learn", "step"):
            awake = 0
            for name, other in self.handles.items():
                if name.startswith("rollout/") and not other.is_dead:
                    awake += other.worker.is_awake
            self.num_awake.append(awake)
        await super().strike(method, handle)


class Awake(Rollout):
    """Knows whether it holds its GPU."""

    is_awake = False

    async def start(self) -> dict[str, Any]:
        self.is_awake = True
        await self.strike("begin")
        # It still starts when the others have heard of what was struck.
        await asyncio.sleep(LIMIT_S / 2)
        return await super().start()

    async def sleep(self, level: int) -> None:
        await super().sleep(level)
        self.is_awake = False

    async def wake(self) -> None:
        self.is_awake = True
        await super().wake()


@pytest.mark.parametrize(
    "plan",
    [
        [("step", 5, "kill")],
        [("load", 5, "kill")],
        [("generate", 6, "kill"), ("step", 5, "kill")],
        [("generate", 6, "hang"), ("step", 7, "kill"), ("load", 4, "kill")],
        # The ranks are lost again while they start.
        [("step", 5, "kill"), ("learn", 2, "kill")],
    ],
)
def test_engines_that_share_gpus_sleep_while_a_learner_starts_or_steps(
    tmp_path: Path, plan: list[tuple[str, int, str]]
) -> None:
    config = config_of(tmp_path, cluster__placement="colocated")
    chaos = SharedGpus(*plan)
    run_dir = run(config, chaos, Awake)
    assert chaos.plan == []
    check(run_dir)
    assert set(chaos.num_awake) == {0}


class BothAtOnce(SharedGpus):
    """Kills the learner when an engine begins to start in the place of another one."""

    async def strike(self, method: str, handle: LocalHandle) -> None:
        await super().strike(method, handle)
        if (method, self.counts[method]) == ("begin", 2):
            self.handles["learner/0"].kill()


def test_an_engine_that_starts_as_the_learner_is_lost_sleeps_for_the_next_one(
    tmp_path: Path,
) -> None:
    config = config_of(tmp_path, cluster__placement="colocated")
    chaos = BothAtOnce(("generate", 6, "kill"))
    run_dir = run(config, chaos, Awake)
    assert chaos.plan == []
    check(run_dir)
    assert set(chaos.num_awake) == {0}
    names = sorted(event["name"] for event in events(run_dir, "restart"))
    assert names == ["learner/0", "rollout/0"]


strikes = st.tuples(
    st.sampled_from(["generate", "load", "receive", "prove", "rank", "step"]),
    st.integers(1, 8),
    st.sampled_from(["kill", "kill", "hang"]),
)


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    plan=st.lists(strikes, max_size=5, unique_by=lambda entry: entry[:2]).filter(
        lambda plan: sum(entry[0] == "step" for entry in plan) < MAX_LOSSES
    ),
    staleness=st.integers(0, 2),
    interval=st.sampled_from([1, 2]),
    workers=st.integers(1, 3),
    transport=st.sampled_from(["object_store", "broadcast"]),
)
def test_any_deaths_leave_one_outcome_per_group(
    tmp_path: Path,
    plan: list[tuple[str, int, str]],
    staleness: int,
    interval: int,
    workers: int,
    transport: str,
) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    config = config_of(
        folder,
        loop__max_staleness=staleness,
        loop__publish_interval=interval,
        rollout__num_workers=workers,
        reward__num_workers=workers,
        cluster__max_restarts_per_hour=100,
        **BROADCAST | {"weights__transport": transport},
    )
    check(run(config, Chaos(*plan)))

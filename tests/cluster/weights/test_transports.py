"""What every way of bringing weights to engines keeps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cluster.run.turns import Turns
from cluster.runtime.clients import LearnerClient, RolloutClient, Workers
from cluster.weights.transport import Delivered, transport_of
from common.config import RunConfig
from common.data.images import ImageStore
from common.errors import UserError
from common.push.meeting import EngineSeat, Meeting, Place, PushBroken
from common.push.plan import PushPlan
from common.records import LoadReport, WeightManifest
from tests.cluster.runs import make_config
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker
from tests.fakes.runtime import LocalHandle
from tests.probes import one_answer
from tests.tiny_models import make_prompt

LIMIT_S = 5.0
TIMEOUT_S = 0.3
TRANSPORTS = ("object_store", "broadcast")


class FailingWorker(FakeRolloutWorker):
    """Its engine dies while it takes weights."""

    async def load(self, manifest: WeightManifest, tensors: Any) -> LoadReport:
        raise RuntimeError("the engine died")

    async def receive(
        self, version: int, plan: PushPlan, meeting: Meeting, first_rank: int
    ) -> LoadReport:
        raise RuntimeError("the engine died")


class HangingWorker(FakeRolloutWorker):
    """Its engine stops in the middle of a push."""

    async def receive(
        self, version: int, plan: PushPlan, meeting: Meeting, first_rank: int
    ) -> LoadReport:
        await asyncio.sleep(60)
        raise AssertionError("nobody waits so long")


class DyingWorkers:
    """Makes workers of which one dies in every round of a push, the last of them in the last round."""

    def __init__(self) -> None:
        self._num_made = 0

    def __call__(self, config: RunConfig, index: int) -> FakeRolloutWorker:
        self._num_made += 1
        rounds_left = self._num_made

        class Dying(FakeRolloutWorker):
            async def receive(
                self, version: int, plan: PushPlan, meeting: Meeting, first_rank: int
            ) -> LoadReport:
                nonlocal rounds_left
                rounds_left -= 1
                if not rounds_left:
                    raise RuntimeError("the engine died")
                return await super().receive(version, plan, meeting, first_rank)

        return Dying(config, index)


class UnreachedWorker(FakeRolloutWorker):
    """Its groups fall apart, and it cannot tell why."""

    num_rounds = 0

    async def receive(
        self, version: int, plan: PushPlan, meeting: Meeting, first_rank: int
    ) -> LoadReport:
        type(self).num_rounds += 1
        raise PushBroken("a member did not come")


class GpuWorker(FakeRolloutWorker):
    """Notes over what its pushes come."""

    backends: ClassVar[list[str]] = []
    memory: ClassVar[str] = "here"

    async def check_push(self, version: int, plan: PushPlan) -> EngineSeat:
        return EngineSeat("here", "cuda", 1, self.memory)

    async def receive(
        self, version: int, plan: PushPlan, meeting: Meeting, first_rank: int
    ) -> LoadReport:
        self.backends.append(meeting.backend)
        return await super().receive(version, plan, meeting, first_rank)


class GpuLearner(FakeLearner):
    memory: ClassVar[str] = "here"

    def meeting_place(self, networks: list[str]) -> Place:
        return Place("127.0.0.1", 1, "cuda", self.memory)


class OtherModelWorker(FakeRolloutWorker):
    async def check_push(self, version: int, plan: PushPlan) -> EngineSeat:
        raise UserError("another revision of the model")


class FailingLearner(FakeLearner):
    def publish(self, version: int) -> Any:
        raise UserError("the learner died")


class World:
    """A learner of these pairs trained, and engines, one of which may fail."""

    def __init__(
        self, config: RunConfig, tmp_path: Path, learner: type = FakeLearner
    ) -> None:
        self.config = config
        self.learner = learner(config)
        self.learner.weight = 3
        prompt = make_prompt(ImageStore(tmp_path), 1)
        self.learner.set_probe(one_answer(prompt, (20, 21)))
        client = LearnerClient([LocalHandle(self.learner)], LIMIT_S)
        turns = Turns(config.cluster, Workers([], [], client))
        self.transport = transport_of(config, client, turns)

    def engine(self, worker: Any = FakeRolloutWorker) -> RolloutClient:
        return RolloutClient(LocalHandle(worker(self.config, 0)), LIMIT_S)


def version_of(engine: RolloutClient) -> int:
    assert isinstance(engine.handle, LocalHandle)
    version: int = engine.handle.worker.engine.weight_version
    return version


def delivered(delivery: Coroutine[Any, Any, Delivered]) -> Delivered:
    return asyncio.run(asyncio.wait_for(delivery, 60))


def config_of(
    transport: str, tmp_path: Path, timeout_s: float = TIMEOUT_S
) -> RunConfig:
    return make_config(
        tmp_path, weights__transport=transport, weights__timeout_s=timeout_s
    )


@pytest.fixture(params=TRANSPORTS)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> RunConfig:
    return config_of(request.param, tmp_path)


@pytest.fixture
def world(config: RunConfig, tmp_path: Path) -> World:
    return World(config, tmp_path)


def test_all_engines_prove_what_the_learner_holds(world: World) -> None:
    engines = [world.engine(), world.engine()]
    result = delivered(world.transport.deliver(4, engines))
    result.check()
    assert [report.version for report in result.reports] == [4, 4]
    assert [report.probe_error for report in result.reports] == [0, 0]
    assert [version_of(engine) for engine in engines] == [4, 4]


def test_an_engine_that_fails_takes_no_other_along(world: World) -> None:
    first, dead, last = world.engine(), world.engine(FailingWorker), world.engine()
    result = delivered(world.transport.deliver(1, [first, dead, last]))
    assert len(result.reports) == 2
    ((engine, error),) = result.failures
    assert engine is dead
    assert str(error) == "the engine died"
    assert version_of(first) == version_of(last) == 1
    with pytest.raises(RuntimeError, match="the engine died"):
        result.check()


def test_with_every_engine_gone_the_manifest_is_still_known(world: World) -> None:
    dead = [world.engine(FailingWorker), world.engine(FailingWorker)]
    result = delivered(world.transport.deliver(1, dead))
    assert [engine for engine, _ in result.failures] == dead
    assert result.manifest.change_norm == 3


def test_a_restarted_engine_gets_the_weights_alone(world: World) -> None:
    engine, restarted = world.engine(), world.engine()
    delivered(world.transport.deliver(1, [engine]))
    world.learner.weight = 9
    result = delivered(world.transport.deliver(2, [restarted]))
    result.check()
    assert version_of(engine) == 1
    assert version_of(restarted) == 2


def test_the_learner_can_go_on_before_the_engines_have_loaded(world: World) -> None:
    class SlowWorker(FakeRolloutWorker):
        async def load(self, manifest: WeightManifest, tensors: Any) -> LoadReport:
            await asyncio.sleep(0.05)
            return await super().load(manifest, tensors)

        async def prove(
            self, manifest: WeightManifest, received: LoadReport
        ) -> LoadReport:
            await asyncio.sleep(0.05)
            return await super().prove(manifest, received)

    async def scenario() -> None:
        sent = asyncio.Event()
        delivery = world.transport.deliver(1, [world.engine(SlowWorker)], sent.set)
        task = asyncio.create_task(delivery)
        await sent.wait()
        assert not task.done()
        (await task).check()

    asyncio.run(scenario())


def test_what_the_learner_says_comes_first(config: RunConfig, tmp_path: Path) -> None:
    world = World(config, tmp_path, FailingLearner)
    with pytest.raises(UserError, match="the learner died"):
        delivered(world.transport.deliver(1, [world.engine()]))


def test_an_engine_that_hangs_in_a_broadcast_is_told_from_the_others(
    tmp_path: Path,
) -> None:
    world = World(config_of("broadcast", tmp_path), tmp_path)
    hanging, engine = world.engine(HangingWorker), world.engine()
    result = delivered(world.transport.deliver(1, [hanging, engine]))
    ((lost, error),) = result.failures
    assert lost is hanging
    assert "got no answer within 0.3 s of the end of a weight push" in str(error)
    assert version_of(engine) == 1


def test_an_engine_that_lives_tells_at_once_of_one_that_died(tmp_path: Path) -> None:
    """Nobody waits for `timeout_s`: the dead one could not say so itself, and the learner waits for all."""
    world = World(config_of("broadcast", tmp_path, timeout_s=30), tmp_path)
    dead, engine = world.engine(FailingWorker), world.engine()
    begun = time.monotonic()
    result = delivered(world.transport.deliver(1, [dead, engine]))
    assert time.monotonic() - begun < 5
    assert [lost for lost, _ in result.failures] == [dead]
    assert version_of(engine) == 1


def test_an_engine_of_another_model_costs_the_others_nothing(tmp_path: Path) -> None:
    world = World(config_of("broadcast", tmp_path), tmp_path)
    other, engine = world.engine(OtherModelWorker), world.engine()
    result = delivered(world.transport.deliver(1, [other, engine]))
    ((lost, error),) = result.failures
    assert lost is other
    assert str(error) == "another revision of the model"
    assert version_of(engine) == 1


def test_rounds_that_cost_an_engine_are_not_counted(tmp_path: Path) -> None:
    """Three engines die one after the other; the fourth gets the weights."""
    world = World(config_of("broadcast", tmp_path), tmp_path)
    dying = DyingWorkers()
    dead = [world.engine(dying) for _ in range(3)]
    engine = world.engine()
    result = delivered(world.transport.deliver(1, [*dead, engine]))
    assert [lost for lost, _ in result.failures] == dead
    assert version_of(engine) == 1


def test_with_nobody_to_blame_it_ends_after_two_rounds(tmp_path: Path) -> None:
    world = World(config_of("broadcast", tmp_path), tmp_path)
    with pytest.raises(UserError, match="not all 2 members came"):
        delivered(world.transport.deliver(1, [world.engine(UnreachedWorker)]))
    assert UnreachedWorker.num_rounds == 2


@pytest.mark.parametrize(
    ("transport", "wire", "placement", "memories", "backend"),
    [
        ("broadcast", "auto", "disaggregated", ("a", "a"), "nccl"),
        ("broadcast", "gloo", "disaggregated", ("a", "a"), "gloo"),
        # NCCL takes a GPU once.
        ("broadcast", "auto", "colocated", ("a", "a"), "shm"),
        ("broadcast", "gloo", "colocated", ("a", "a"), "gloo"),
        ("broadcast", "auto", "colocated", ("a", "b"), "gloo"),
        # Of machines that cannot say who opens their memory.
        ("broadcast", "auto", "colocated", ("", ""), "gloo"),
        ("ipc", "auto", "colocated", ("a", "a"), "ipc"),
    ],
)
def test_the_backend_is_one_that_the_members_can_take(
    transport: str,
    wire: str,
    placement: str,
    memories: tuple[str, str],
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GpuLearner, "memory", memories[0])
    monkeypatch.setattr(GpuWorker, "memory", memories[1])
    config = make_config(
        tmp_path,
        weights__transport=transport,
        weights__wire=wire,
        cluster__placement=placement,
        rollout__num_gpus=1,
        rollout__num_workers=1,
        learner__num_gpus=1,
    )
    world = World(config, tmp_path, GpuLearner)
    GpuWorker.backends.clear()
    delivered(world.transport.deliver(1, [world.engine(GpuWorker)])).check()
    assert GpuWorker.backends == [backend]

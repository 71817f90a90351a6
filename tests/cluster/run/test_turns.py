"""Engines and learner that share GPUs: one side works at a time, and the outcome is that of a run where both could."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cluster.run.turns import Turns
from cluster.runtime.clients import LearnerClient, RolloutClient, Workers
from common.config import RunConfig
from common.data.images import ImageStore
from common.errors import UserError
from common.metrics import read_lines
from common.protocols import GenerationRequest
from common.records import Dropped, PreferencePair, StepResult
from tests.cluster.runs import STEPS, events, killed_at, make_config, run, trained_pairs
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker
from tests.fakes.runtime import LocalHandle
from tests.tiny_models import make_prompt


class Watch:
    """What was going on, in order."""

    log: ClassVar[list[str]] = []


class WatchedWorker(FakeRolloutWorker):
    delay_s = 0.002

    async def generate(self, requests: list[Any]) -> list[Any]:
        Watch.log.append("sample")
        groups = await super().generate(requests)
        Watch.log.append("sampled")
        return groups

    async def sleep(self, level: int) -> None:
        Watch.log.append(f"sleep {level}")
        await super().sleep(level)

    async def wake(self) -> None:
        await super().wake()
        Watch.log.append("wake")

    async def load(self, manifest: Any, tensors: Any) -> Any:
        Watch.log.append("load")
        return await super().load(manifest, tensors)


class WatchedLearner(FakeLearner):
    async def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        Watch.log.append("step")
        return await super().step(step, pairs)

    def publish(self, version: int) -> Any:
        Watch.log.append("publish")
        return super().publish(version)


def colocated(tmp_path: Path, **changes: Any) -> RunConfig:
    return make_config(tmp_path, cluster__placement="colocated", **changes)


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
@pytest.mark.parametrize("level", [1, 2])
def test_engines_sleep_while_the_learner_works(
    tmp_path: Path, max_staleness: int, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watch, "log", [])
    config = colocated(
        tmp_path, loop__max_staleness=max_staleness, cluster__sleep_level=level
    )
    _, run_dir = run(config, rollout=WatchedWorker, learner=WatchedLearner)
    log = Watch.log
    # The first sleep keeps the weights: the learner starts meanwhile, and pushes nothing.
    assert log[:2] == ["sleep 1", "wake"]
    for index, event in enumerate(log):
        if event == "step":
            # Nothing else happens from one to the other.
            turn = [f"sleep {level}", "step", "publish", "wake", "load"]
            assert log[index - 1 : index + 4] == turn
            assert log[:index].count("sample") == log[:index].count("sampled")
    assert log.count("step") == STEPS
    assert len(trained_pairs(run_dir)) == STEPS * 4


def test_without_a_publish_the_engines_wake_too(tmp_path: Path) -> None:
    config = colocated(tmp_path, loop__publish_interval=2)
    _, run_dir = run(config)
    versions = [event["version"] for event in events(run_dir, "publish")]
    assert versions == list(range(1, STEPS // 2 + 1))
    assert len(trained_pairs(run_dir)) == STEPS * 4


def test_the_outcome_is_that_of_a_run_that_does_not_share(tmp_path: Path) -> None:
    """With the same schedule: strictly on-policy, nothing is ever sampled beside a step."""
    outcomes = []
    for placement in ("disaggregated", "colocated"):
        config = make_config(
            tmp_path / placement,
            cluster__placement=placement,
            loop__max_staleness=0,
            rollout__deterministic=True,
        )
        _, run_dir = run(config)
        lines = read_lines(run_dir / "metrics.jsonl")
        timeless = []
        for line in lines:
            timeless.append({key: line[key] for key in line if "time" not in key})
        checksums = [event["checksum"] for event in events(run_dir, "publish")]
        outcomes.append((trained_pairs(run_dir), timeless, checksums))
    assert outcomes[0] == outcomes[1]


def test_an_engine_that_is_just_starting_sleeps_with_its_weights(
    tmp_path: Path,
) -> None:
    """The others get new ones by the next push; this one has still to be measured by those that it came with."""
    config = colocated(tmp_path, cluster__sleep_level=2)
    workers = [FakeRolloutWorker(config, index) for index in range(2)]
    engine, new = (RolloutClient(LocalHandle(worker), 5.0) for worker in workers)
    learner = LearnerClient([LocalHandle(FakeLearner(config))], 5.0)

    async def scenario() -> None:
        turns = Turns(config.cluster, Workers([engine], [], learner))
        with turns.newcomer(new):
            async with turns.starting():
                passing = asyncio.create_task(turns.pass_to_learner())
                await asyncio.sleep(0.01)
                assert not workers[0].sleeps
            await passing
            assert [worker.sleeps for worker in workers] == [[2], [1]]
            await turns.pass_to_engines()
            prompt = make_prompt(ImageStore(tmp_path), 1)
            await new.generate([GenerationRequest("a", prompt, 2, 1.0, 20)])

    asyncio.run(scenario())


def test_a_call_that_is_given_up_as_it_ends_keeps_nobody_waiting(
    tmp_path: Path,
) -> None:
    """Tasks are cancelled at any time when a loop ends, and its turns go on with the next one."""
    config = colocated(tmp_path)
    learner = LearnerClient([LocalHandle(FakeLearner(config))], 5.0)

    async def scenario() -> None:
        turns = Turns(config.cluster, Workers([], [], learner))

        async def call() -> None:
            async with turns.sampling():
                await asyncio.Event().wait()

        calling = asyncio.create_task(call())
        await asyncio.sleep(0)
        for _ in range(3):
            calling.cancel()
        await asyncio.wait([calling])
        async with asyncio.timeout(5), turns.learner_starting():
            pass

    asyncio.run(scenario())


def test_a_colocated_run_resumes(tmp_path: Path) -> None:
    config = colocated(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(6))
    _, run_dir = run(config, resume=True)
    assert len(set(trained_pairs(run_dir))) == STEPS * 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"rollout__num_workers": 3, "learner__num_ranks": 4},
            "as many ranks beside every engine, got 4 ranks and 3 engines",
        ),
        (
            {"rollout__num_gpus": 1, "learner__num_ranks": 2, "learner__num_gpus": 1},
            r"rollout\.num_gpus = the ranks per engine \(2\), got 1 and 1",
        ),
        (
            {"cluster__sleep_level": 2, "loop__publish_interval": 2},
            r"needs loop\.publish_interval = 1, got 2",
        ),
        (
            {
                "cluster__sleep_level": 2,
                "model__tuning__kind": "lora",
                "weights__transport": "auto",
            },
            r"needs pushes of all of them, got adapters alone",
        ),
    ],
)
def test_what_cannot_take_turns_is_refused(
    tmp_path: Path, words: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        colocated(tmp_path, **words)

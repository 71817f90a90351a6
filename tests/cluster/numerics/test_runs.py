"""Whole runs with fakes: engines are calibrated before training, resumed or not; the gate's figures are metrics."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from cluster.run.turns import Turns
from cluster.runtime.clients import LearnerClient, RolloutClient, Workers
from cluster.weights.engine_weights import EngineWeights
from cluster.weights.transport import transport_of
from common.data.images import ImageStore
from common.errors import UserError
from common.metrics import read_lines
from common.records import LogprobProbe, ProbeReading
from tests.cluster.runs import STEPS, events, killed_at, make_config, run
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker
from tests.fakes.runtime import LocalHandle
from tests.probes import one_answer
from tests.tiny_models import make_prompt

KEYS = (
    "weights/probe_abs",
    "weights/probe_abs_max",
    "weights/probe_kl",
    "weights/probe_kl_max",
    "weights/probe_load",
    "time/probe_s",
)


def test_figures_of_every_push_are_metrics(tmp_path: Path) -> None:
    config = make_config(tmp_path, rollout__num_workers=2, loop__probe_answers=3)
    _, run_dir = run(config)
    (probe,) = events(run_dir, "probe")
    assert len(probe["prompts"]) == 3
    assert probe["tokens"] > 3
    assert [reading["abs_mean"] for reading in probe["readings"]] == [0, 0]
    lines = read_lines(run_dir / "metrics.jsonl")
    assert len(lines) == STEPS
    # Engines load beside the learner's next step, whose line has the figures; a checkpoint waits for them, so the step
    # after it has none.
    measured = [line for line in lines if set(KEYS) <= set(line)]
    assert len(measured) >= STEPS // 2
    assert measured[-1]["step"] == STEPS
    assert all(line["weights/probe_abs"] == 0 for line in measured)
    assert all("weights/probe_kl" in event for event in events(run_dir, "publish"))


def test_a_resumed_run_is_calibrated_before_its_checkpoint_is_loaded(
    tmp_path: Path,
) -> None:
    order: list[str] = []

    class Watched(FakeRolloutWorker):
        async def calibrate(
            self, probe: LogprobProbe, proven: ProbeReading | None = None
        ) -> ProbeReading:
            order.append("calibrate")
            return await super().calibrate(probe, proven)

    class WatchedLearner(FakeLearner):
        def load(self, directory: str) -> Any:
            order.append("load")
            return super().load(directory)

    with pytest.raises(RuntimeError, match="killed"):
        run(make_config(tmp_path), learner=killed_at(6))
    run(make_config(tmp_path), True, Watched, WatchedLearner)
    assert order == ["calibrate", "load"]


def test_a_run_says_why_it_merges(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before anything is started."""

    class Stopping(FakeLearner):
        def rendezvous(self) -> tuple[str, int]:
            raise UserError("stopped")

    config = make_config(
        tmp_path,
        weights__transport="auto",
        model__tuning__kind="lora",
        model__tuning__sides='["vision"]',
    )
    with (
        caplog.at_level(logging.WARNING, "sightline"),
        pytest.raises(UserError, match="stopped"),
    ):
        run(config, learner=Stopping)
    assert "pushes carry merged weights: the policy has adapters on" in caplog.text


def test_an_engine_that_is_started_again_is_calibrated_before_its_first_weights(
    tmp_path: Path,
) -> None:
    config = make_config(tmp_path)
    order: list[str] = []

    class Watched(FakeRolloutWorker):
        async def calibrate(
            self, probe: LogprobProbe, proven: ProbeReading | None = None
        ) -> ProbeReading:
            order.append("calibrate")
            return await super().calibrate(probe, proven)

        async def load(self, manifest: Any, tensors: Any) -> Any:
            order.append(f"load {manifest.version}")
            return await super().load(manifest, tensors)

    def engine() -> RolloutClient:
        return RolloutClient(LocalHandle(Watched(config, 0)), 5.0)

    learner = FakeLearner(config)
    client = LearnerClient([LocalHandle(learner)], 5.0)
    turns = Turns(config.cluster, Workers([], [], client))
    transport = transport_of(config, client, turns)
    weights = EngineWeights([engine()], transport, turns)
    prompt = make_prompt(ImageStore(tmp_path / "images"), 1)

    async def scenario() -> None:
        start = await client.set_probe(one_answer(prompt, (20, 21)))
        (reading,) = await weights.calibrate(start)
        assert reading.abs_mean == 0
        learner.weight = 7
        async with weights.changing():
            await weights.publish(1)
        await weights.catch_up(engine())

    asyncio.run(scenario())
    assert order == ["calibrate", "load 1", "calibrate", "load 1"]


def test_an_engine_that_is_started_again_hears_what_version_0_measured(
    tmp_path: Path,
) -> None:
    """With a quantised base an engine's files are not the start policy, which it gets by that push alone."""
    config = make_config(tmp_path)
    heard: list[ProbeReading | None] = []

    class Watched(FakeRolloutWorker):
        async def calibrate(
            self, probe: LogprobProbe, proven: ProbeReading | None = None
        ) -> ProbeReading:
            heard.append(proven)
            return await super().calibrate(probe, proven)

    def engine() -> RolloutClient:
        return RolloutClient(LocalHandle(Watched(config, 0)), 5.0)

    client = LearnerClient([LocalHandle(FakeLearner(config))], 5.0)
    turns = Turns(config.cluster, Workers([], [], client))
    transport = transport_of(config, client, turns)
    weights = EngineWeights([engine()], transport, turns)
    prompt = make_prompt(ImageStore(tmp_path / "images"), 1)

    async def scenario() -> ProbeReading | None:
        start = await client.set_probe(one_answer(prompt, (20, 21)))
        await weights.calibrate(start)
        async with weights.changing():
            delivered = await weights.publish(0)
        await weights.catch_up(engine())
        return delivered.reports[0].probe

    of_version_0 = asyncio.run(scenario())
    assert of_version_0 is not None
    assert heard == [None, of_version_0]

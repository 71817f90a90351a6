"""Whole runs in this process with a fake engine and a fake learner, for the tests of the loop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from cluster.placement.bundles import plan
from cluster.run.crew import WorkerTypes
from cluster.run.experiment import Experiment
from cluster.run.run_dir import RunDir
from common.config import RunConfig
from common.config.overrides import load_config
from common.data.datasets import write_pairs
from common.data.images import ImageStore
from common.journal import read_events
from common.records import Dropped, PreferencePair, Response, StepResult
from common.shapes.prompts import caption_prompts
from reward.worker import RewardWorker
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker
from tests.fakes.runtime import LocalRuntime
from tests.tiny_models import tiny_llava

STEPS = 8
SUITES = '[{ kind = "shapes", validation_scenes = 4, test_scenes = 6 }]'


def make_config(tmp_path: Path, **changes: Any) -> RunConfig:
    """A small online run; in the names of `changes`, `__` stands for a dot."""
    values = {
        "run.dir": tmp_path / "run",
        "model.path": tiny_llava(),
        "data.prompts.count": 40,
        "rollout.prompts_per_call": 2,
        "learner.num_steps": STEPS,
        "learner.global_batch": 4,
        "mixture.online_fraction": 1,
        "checkpoint.interval": 4,
        "evaluation.suites": SUITES,
        "evaluation.bootstrap_samples": 20,
        "evaluation.samples_shown": 2,
        "weights.transport": "object_store",
    }
    for name, value in changes.items():
        values[name.replace("__", ".")] = value
    return load_config(None, [f"--{key}={value}" for key, value in values.items()])


def run(
    config: RunConfig,
    resume: bool = False,
    rollout: type = FakeRolloutWorker,
    learner: type = FakeLearner,
    reward: type = RewardWorker,
) -> tuple[LocalRuntime, Path]:
    """Run to the end; returns the runtime with its workers, and the run directory."""
    runtime = LocalRuntime()
    with RunDir(config, resume) as run_dir:
        experiment = Experiment(
            config,
            run_dir,
            runtime,
            plan(config),
            WorkerTypes(rollout, reward, learner),
        )
        asyncio.run(asyncio.wait_for(experiment.run(), 60))
    return runtime, run_dir.path


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The journal's events of one kind, in order."""
    journal = run_dir / "journal" / "events.jsonl"
    return [event for event in read_events(journal) if event["event"] == kind]


def trained_pairs(run_dir: Path) -> list[str]:
    """Ids of all pairs in the journal's steps; steps that a resume repeated count once."""
    pairs_of_step: dict[int, list[str]] = {}
    for event in events(run_dir, "step"):
        pairs_of_step[event["step"]] = event["pairs"]
    assert sorted(pairs_of_step) == list(range(1, STEPS + 1))
    trained: list[str] = []
    for step in range(1, STEPS + 1):
        trained += pairs_of_step[step]
    return trained


def offline_set(folder: Path, source: str, count: int) -> Path:
    """A set of offline pairs with ids `SOURCE/PROMPT_ID`, in a folder of its own."""
    store = ImageStore(folder.parent / "images")
    pairs = []
    for prompt in caption_prompts("train", count, 5, store):
        pair = PreferencePair(
            id=f"{source}/{prompt.id}",
            prompt=prompt,
            chosen=Response(prompt.reference or ""),
            rejected=Response(f"No {source}."),
            source=source,
        )
        pairs.append(pair)
    write_pairs(folder, pairs)
    return folder


def killed_at(fatal_step: int) -> type[FakeLearner]:
    """A learner that dies at a step, as a killed process would: nothing after the call happens."""

    class KilledLearner(FakeLearner):
        async def step(
            self, step: int, pairs: list[PreferencePair]
        ) -> tuple[StepResult, list[Dropped]]:
            if step == fatal_step:
                raise RuntimeError("killed")
            return await super().step(step, pairs)

    return KilledLearner

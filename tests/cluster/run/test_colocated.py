"""A real engine and a real learner take turns: the weights are those of a run in which both could work at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.rollout import RolloutWorker
from common.checkpoint.files import tensor_shapes
from common.config import SHAPES_POLICY
from learner.learner import Learner
from tests.cluster.runs import events, make_config, run

pytestmark = pytest.mark.real

NUM_STEPS = 2


class SleepyWorker(RolloutWorker):
    """Counts how often it slept."""

    num_sleeps = 0

    async def sleep(self, level: int) -> None:
        SleepyWorker.num_sleeps += 1
        await super().sleep(level)


def published(folder: Path, placement: str, level: int) -> list[tuple[float, str]]:
    """The norm of the change and the checksum of every push of a deterministic run."""
    config = make_config(
        folder / placement,
        cluster__placement=placement,
        cluster__sleep_level=level,
        model__path=SHAPES_POLICY,
        loop__max_staleness=0,
        rollout__deterministic=True,
        rollout__max_tokens=24,
        learner__engine="torch",
        learner__num_steps=NUM_STEPS,
        learner__optimizer__lr=1e-4,
        checkpoint__interval=NUM_STEPS,
        evaluation__grounding_pairs=0,
        evaluation__suites='[{ kind = "shapes", validation_scenes = 1, test_scenes = 1 }]',
    )
    _, run_dir = run(config, rollout=SleepyWorker, learner=Learner)
    pushes = []
    for event in events(run_dir, "publish"):
        assert max(event["probe_error"]) < 1e-3
        pushes.append((event["change_norm"], event["checksum"]))
    assert tensor_shapes(run_dir / "policy")
    return pushes


def test_the_weights_are_bit_equal(tmp_path: Path) -> None:
    apart = published(tmp_path, "disaggregated", 1)
    assert SleepyWorker.num_sleeps == 0
    shared = published(tmp_path, "colocated", 2)
    # One more while the learner starts.
    assert SleepyWorker.num_sleeps == NUM_STEPS + 1
    assert len(apart) == NUM_STEPS
    assert apart[0][0] > 0
    assert shared == apart

"""A learner is lost: it goes on from its last checkpoint, unless that does not help."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from cluster.signals import Interrupted
from common.errors import RunFailed
from tests.cluster.runs import STEPS, events
from tests.cluster.supervision.chaos_runs import Chaos, check, config_of, run
from tests.fakes.runtime import LocalHandle

pytestmark = pytest.mark.usefixtures("short_pauses")


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


class AskedAndLost(Chaos):
    """SIGTERM comes in the step in which the learner is lost."""

    async def strike(self, method: str, handle: LocalHandle) -> None:
        if method == "step" and self.counts.get("step") == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.05)
        await super().strike(method, handle)


def test_an_end_that_is_asked_for_before_the_first_checkpoint_is_no_failure(
    tmp_path: Path,
) -> None:
    config = config_of(tmp_path)
    with pytest.raises(Interrupted) as end:
        run(config, AskedAndLost(("step", 2, "kill")))
    assert end.value.status == 143
    (ended,) = events(config.run.dir, "ended")
    assert ended["status"] == 143

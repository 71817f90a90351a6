"""What a resume goes on from: the newest whole checkpoint, and a config of which some keys may have changed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from cluster.checkpoints.config_changes import changes
from cluster.run.auditing import audit
from cluster.signals import Interrupted, Terminated
from common.errors import UserError
from common.protocols import GenerationRequest
from common.records import Dropped, PreferencePair, RolloutGroup, StepResult
from tests.cluster.runs import (
    STEPS,
    events,
    killed_at,
    make_config,
    run,
    trained_pairs,
)
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _interrupted(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 2, 4 and 6, killed in step 7."""
    config = make_config(tmp_path, checkpoint__interval=2, checkpoint__keep=3)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(7))
    return tmp_path / "run"


def _a_file_of(checkpoint: Path) -> Path:
    return next(path for path in checkpoint.rglob("*") if path.name == "state.json")


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = _interrupted(tmp_path)
    newest = run_dir / "checkpoints" / "step_000006"
    _flip_a_byte(_a_file_of(newest))
    config = make_config(tmp_path, checkpoint__interval=2, checkpoint__keep=3)
    run(config, resume=True)
    assert "going on from step_000004" in caplog.text
    assert (run_dir / "checkpoints" / "damaged_step_000006").is_dir()
    (resume,) = events(run_dir, "resume")
    assert resume["step"] == 4
    trained = trained_pairs(run_dir)
    assert len(set(trained)) == len(trained) == STEPS * 4
    assert audit(run_dir).faults == []


def test_nothing_goes_on_when_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    run_dir = _interrupted(tmp_path)
    checkpoints = sorted((run_dir / "checkpoints").glob("step_*"))
    for checkpoint in checkpoints:
        _flip_a_byte(_a_file_of(checkpoint))
    config = make_config(tmp_path, checkpoint__interval=2, checkpoint__keep=3)
    with pytest.raises(UserError, match="step_000006: expected a whole checkpoint"):
        run(config, resume=True)
    assert sorted((run_dir / "checkpoints").glob("step_*")) == checkpoints


def test_limits_intervals_and_numbers_of_workers_may_change(tmp_path: Path) -> None:
    run_dir = _interrupted(tmp_path)
    config = make_config(
        tmp_path,
        checkpoint__interval=4,
        checkpoint__keep=1,
        loop__call_timeout_s=61,
        rollout__num_workers=2,
        reward__num_workers=2,
        learner__micro_batch=2,
        learner__num_ranks=2,
        learner__zero_stage=3,
        learner__offload="optimizer",
    )
    run(config, resume=True)
    assert audit(run_dir).faults == []
    changed = {
        event["key"]: event["now"] for event in events(run_dir, "config_changed")
    }
    assert changed["loop.call_timeout_s"] == 61
    assert changed["rollout.num_workers"] == 2
    assert changed["learner.num_ranks"] == 2
    written = json.loads((run_dir / "config.json").read_text())
    assert written["loop"]["call_timeout_s"] == 61


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2)])
def test_the_publish_interval_may_change(tmp_path: Path, before: int, now: int) -> None:
    """On-policy, where a wrong count of versions admits nothing, or what is stale when it is trained on."""
    changes = {"loop__max_staleness": 0, "loop__stall_limit_s": 5}
    config = make_config(tmp_path, loop__publish_interval=before, **changes)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(6))
    config = make_config(tmp_path, loop__publish_interval=now, **changes)
    _, run_dir = run(config, resume=True)
    versions = [event["version"] for event in events(run_dir, "step")]
    first = 4 // before
    # The steps after the checkpoint of step 4.
    assert versions[-4:] == [first + index // now for index in range(4)]
    assert len(set(trained_pairs(run_dir))) == STEPS * 4
    account = audit(run_dir)
    assert account.faults == []
    assert "stale" not in account.drops


def test_what_is_measured_in_another_size_is_measured_again(tmp_path: Path) -> None:
    run_dir = _interrupted(tmp_path)
    baseline = run_dir / "evaluation" / "baseline.json"
    before = baseline.read_text()
    suites = '[{ kind = "shapes", validation_scenes = 4, test_scenes = 5 }]'
    sizes = {"checkpoint__interval": 2, "checkpoint__keep": 3}
    config = make_config(tmp_path, evaluation__suites=suites, **sizes)
    run(config, resume=True)
    (change,) = events(run_dir, "config_changed")
    assert change["key"] == "evaluation.suites.0.test_scenes"
    assert (change["before"], change["now"]) == (6, 5)
    assert baseline.read_text() != before


def test_another_suite_is_refused(tmp_path: Path) -> None:
    _interrupted(tmp_path)
    suites = '[{ kind = "shapes", name = "other", test_scenes = 5 }]'
    config = make_config(tmp_path, checkpoint__interval=2, evaluation__suites=suites)
    with pytest.raises(
        UserError, match=r"evaluation\.suites\.0\.name is 'shapes' there"
    ):
        run(config, resume=True)


def test_every_other_key_is_named_with_both_values(tmp_path: Path) -> None:
    run_dir = _interrupted(tmp_path)
    before = (run_dir / "config.json").read_text()
    config = make_config(
        tmp_path, checkpoint__interval=2, run__seed=3, learner__global_batch=8
    )
    with pytest.raises(UserError) as error:
        run(config, resume=True)
    assert (
        "learner.global_batch is 4 there, 8 here, run.seed is 0 there, 3 here"
        in str(error.value)
    )
    assert (run_dir / "config.json").read_text() == before


def test_the_directory_may_be_named_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = _interrupted(tmp_path)
    monkeypatch.chdir(tmp_path)
    relative = os.path.relpath(run_dir)
    config = make_config(
        tmp_path, checkpoint__interval=2, checkpoint__keep=3, run__dir=relative
    )
    run(config, resume=True)
    assert audit(run_dir).faults == []


def test_keys_that_only_one_config_has_are_changes_too() -> None:
    (budget, kind) = changes(
        {"reward": {"judge": {"kind": "endpoint", "budget": {"calls": 3}}}},
        {"reward": {"judge": {"kind": "rules"}}},
    )
    assert (budget.key, budget.now) == ("reward.judge.budget.calls", None)
    assert budget.is_allowed
    assert (kind.key, kind.before, kind.now) == (
        "reward.judge.kind",
        "endpoint",
        "rules",
    )
    assert not kind.is_allowed


# Asked to end.


def _sending(number: int, at_step: int, times: int = 1) -> type[FakeLearner]:
    """A learner in whose step this process is asked to end."""

    class AskedLearner(FakeLearner):
        async def step(
            self, step: int, pairs: list[PreferencePair]
        ) -> tuple[StepResult, list[Dropped]]:
            if step == at_step:
                for _ in range(times):
                    os.kill(os.getpid(), number)
                    # The event loop handles the signal before the step goes on.
                    await asyncio.sleep(0.05)
            return await super().step(step, pairs)

    return AskedLearner


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_saves_its_step(number: int, tmp_path: Path) -> None:
    config = make_config(tmp_path)
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted) as end:
        run(config, learner=_sending(number, at_step=3))
    assert end.value.status == 128 + number
    assert signal.getsignal(number) is handler
    run_dir = tmp_path / "run"
    assert (run_dir / "checkpoints" / "step_000003" / "state.json").exists()
    run(config, resume=True)
    (resume,) = events(run_dir, "resume")
    assert resume["step"] == 3
    # No step is done again, and no pair trained twice.
    account = audit(run_dir)
    assert account.faults == []
    assert account.overwritten.get("step", 0) == 0


def test_an_end_that_is_asked_for_in_the_last_step_is_heard(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    with pytest.raises(Interrupted):
        run(config, learner=_sending(signal.SIGTERM, at_step=STEPS))
    run_dir = tmp_path / "run"
    (ended,) = events(run_dir, "ended")
    assert (ended["status"], ended["why"]) == (143, "SIGTERM asked for an end")
    assert not (run_dir / "scorecard.json").exists()
    run(config, resume=True)
    assert (run_dir / "scorecard.json").exists()
    account = audit(run_dir)
    assert account.faults == []
    assert account.overwritten.get("step", 0) == 0


def test_a_run_that_waits_for_pairs_ends_at_once(tmp_path: Path) -> None:
    class SilentWorker(FakeRolloutWorker):
        is_asked = False

        async def generate(
            self, requests: list[GenerationRequest]
        ) -> list[RolloutGroup | Dropped]:
            if self.engine.weight_version >= 2:
                if not self.is_asked:
                    os.kill(os.getpid(), signal.SIGTERM)
                self.is_asked = True
                await asyncio.sleep(3600)
            return await super().generate(requests)

    config = make_config(tmp_path, loop__max_staleness=0)
    with pytest.raises(Interrupted):
        run(config, rollout=SilentWorker)
    account = audit(tmp_path / "run")
    assert account.faults == []
    assert account.num_steps == 2
    assert account.checkpoints == [2]


def test_a_second_signal_ends_in_the_middle_of_a_step(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    with pytest.raises(Terminated):
        run(config, learner=_sending(signal.SIGTERM, at_step=3, times=2))
    run(config, resume=True)
    assert audit(tmp_path / "run").faults == []


def test_weights_between_two_versions_are_resumed_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(tmp_path, loop__publish_interval=2)
    with pytest.raises(Interrupted):
        run(config, learner=_sending(signal.SIGTERM, at_step=3))
    run(config, resume=True)
    assert "resumed weights" not in caplog.text
    assert audit(tmp_path / "run").faults == []

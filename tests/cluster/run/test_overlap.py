"""The learner goes on while engines load what it has sent."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cluster.checkpoints.checksums import write_checksums
from cluster.run.auditing import audit
from common.metrics import read_lines
from common.push.meeting import Meeting
from common.records import Dropped, LoadReport, PreferencePair, StepResult
from tests.cluster.runs import STEPS, events, killed_at, make_config, run
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker

LOAD_S = 0.03


class Watch:
    log: ClassVar[list[str]] = []


class SlowWorker(FakeRolloutWorker):
    """Has the weights at once, and proves them after a while."""

    async def prove(self, manifest: Any, received: LoadReport) -> LoadReport:
        await asyncio.sleep(LOAD_S)
        report = await super().prove(manifest, received)
        Watch.log.append(f"loaded {manifest.version}")
        return report


class WatchedLearner(FakeLearner):
    async def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        Watch.log.append(f"step {step}")
        return await super().step(step, pairs)

    async def push(self, version: int, meeting: Meeting) -> Any:
        Watch.log.append(f"push {version}")
        return await super().push(version, meeting)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_step_begins_while_engines_load(
    tmp_path: Path, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watch, "log", [])
    config = make_config(
        tmp_path,
        weights__transport="broadcast",
        rollout__deterministic=deterministic,
        # Pairs of the last version are still fresh enough.
        loop__max_staleness=2,
    )
    _, run_dir = run(config, rollout=SlowWorker, learner=WatchedLearner)
    log = Watch.log
    early = 0
    for step in range(1, STEPS):
        early += log.index(f"step {step + 1}") < log.index(f"loaded {step}")
    lines = list(read_lines(run_dir / "metrics.jsonl"))
    overlaps = [line["time/push_overlap_s"] for line in lines]
    if deterministic:
        assert early == 0
        assert set(overlaps) == {0.0}
    else:
        # Steps 4 and 8 are validated, which waits for the engines.
        assert early > 0
        assert sum(overlap > 0 for overlap in overlaps) == early
        assert max(overlaps) < 1
    versions = [event["version"] for event in events(run_dir, "publish")]
    assert versions == list(range(1, STEPS + 1))
    assert audit(run_dir).faults == []


def test_a_resume_compares_and_samples_when_the_engines_hold_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class WatchedWorker(SlowWorker):
        async def generate(self, requests: Any) -> Any:
            Watch.log.append("sample")
            return await super().generate(requests)

    config = make_config(tmp_path, weights__transport="broadcast")
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(6))
    checkpoint = tmp_path / "run" / "checkpoints" / "step_000004"
    state = json.loads((checkpoint / "state.json").read_text())
    checksum, state["weights"] = state["weights"], "another"
    (checkpoint / "state.json").write_text(json.dumps(state))
    write_checksums(checkpoint)
    monkeypatch.setattr(Watch, "log", [])
    run(config, resume=True, rollout=WatchedWorker, learner=WatchedLearner)
    # The baseline is there already. Pairs that waited may make a step before the first sample.
    assert Watch.log[:2] == ["push 4", "loaded 4"]
    assert "sample" in Watch.log
    told = "resumed weights: expected checksum another, as when the checkpoint was written, got %s"
    assert told % checksum in caplog.messages


def test_a_resume_of_the_same_weights_is_silent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(tmp_path, weights__transport="broadcast")
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(6))
    run(config, resume=True, rollout=SlowWorker)
    assert "resumed weights" not in caplog.text


def test_what_engines_do_not_take_ends_the_run(tmp_path: Path) -> None:
    class RefusingWorker(FakeRolloutWorker):
        async def prove(self, manifest: Any, received: LoadReport) -> LoadReport:
            await asyncio.sleep(LOAD_S)
            raise RuntimeError(f"weights {manifest.version}: other weights")

    config = make_config(tmp_path, weights__transport="broadcast")
    with pytest.raises(RuntimeError, match="weights 1: other weights"):
        run(config, rollout=RefusingWorker)

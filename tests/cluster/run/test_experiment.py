"""Whole runs in one process with fake engine and learner: what the loop promises, without Ray, vLLM or DeepSpeed."""

import asyncio
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from common.config import RunConfig
from common.data.datasets import read_pairs
from common.errors import RunFailed, UserError
from common.journal import read_events
from common.metrics import read_lines
from common.protocols import GenerationRequest
from common.records import (
    Dropped,
    PreferencePair,
    RolloutGroup,
    StepResult,
    WeightManifest,
    WriteReport,
)
from tests.cluster.runs import (
    STEPS,
    SUITES,
    events,
    killed_at,
    make_config,
    offline_set,
    run,
    trained_pairs,
)
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_a_run_leaves_everything_and_trains_each_pair_once(
    tmp_path: Path, max_staleness: int
) -> None:
    config = make_config(tmp_path, loop__max_staleness=max_staleness)
    _, run_dir = run(config)
    lines = read_lines(run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert max(line.get("staleness/max", 0) for line in lines) <= max_staleness
    trained = trained_pairs(run_dir)
    assert len(trained) == STEPS * 4
    assert max(Counter(trained).values()) == 1
    versions = [event["version"] for event in events(run_dir, "publish")]
    assert versions == list(range(1, STEPS + 1))
    card = json.loads((run_dir / "scorecard.json").read_text())
    keys = {
        "chair_s",
        "chair_i",
        "recall",
        "pope_accuracy",
        "pope_f1",
        "pope_yes_ratio",
        "win_rate",
    }
    for policy in ("baseline", "final"):
        assert keys <= set(card[policy]["suites"]["shapes"]["metrics"])
    assert (run_dir / "samples.html").read_text().count("data:image/png;base64,") == 2
    assert (run_dir / "policy" / "config.json").exists()
    kept = read_pairs(run_dir / "pairs")
    assert len(kept) >= len(trained)
    assert set(trained) <= {pair.id for pair in kept}


@pytest.mark.parametrize("suites", ["[]", SUITES])
def test_an_engine_starts_again_only_for_what_is_asked(
    tmp_path: Path, suites: str
) -> None:
    """The training's engine is stopped; one with the final policy stands in its place where a suite asks it."""
    runtime, run_dir = run(make_config(tmp_path, evaluation__suites=suites))
    assert runtime.handles["rollout/0"].stopped == (suites == "[]")
    assert (run_dir / "scorecard.json").exists()


def test_the_journal_holds_every_score_of_every_verdict(tmp_path: Path) -> None:
    _, run_dir = run(make_config(tmp_path))
    num_pairs = 0
    for event in events(run_dir, "group"):
        scores = event["verdict"]
        assert len(scores) == len(event["completions"]) > 1
        assert len(event["notes"]) == len(scores)
        if event["outcome"] != "pair":
            assert event["chosen"] == event["rejected"] == []
            continue
        num_pairs += 1
        assert event["scores"] == [max(scores), min(scores)]
        (chosen,) = event["chosen"]
        (rejected,) = event["rejected"]
        assert event["scores"] == [scores[chosen], scores[rejected]]
    assert num_pairs > 0


def test_the_mixture_decides_who_is_trained_on(tmp_path: Path) -> None:
    """ratio 0.5 of 4: exactly two online pairs in each step; offline pairs come again only when all were used."""
    config = make_config(
        tmp_path,
        mixture__online_fraction=0.5,
        mixture__kind="ratio",
        data__offline__path=offline_set(tmp_path / "bdhs", "bdhs", 10),
    )
    _, run_dir = run(config)
    offline: list[str] = []
    for event in events(run_dir, "step"):
        offline_of_step = [id for id in event["pairs"] if id.startswith("bdhs/")]
        assert len(event["pairs"]) - len(offline_of_step) == 2
        offline += offline_of_step
    assert len(set(offline[:10])) == 10
    for line in read_lines(run_dir / "metrics.jsonl"):
        assert line["pairs/online_frac"] == 0.5


def test_switches_that_the_learner_cannot_have_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(make_config(tmp_path))
    assert "learner.fast.share_prompt is off: a fake has no prompt" in caplog.text


def test_offline_only_asks_for_no_rollouts(tmp_path: Path) -> None:
    config = make_config(
        tmp_path,
        mixture__online_fraction=0,
        data__offline__path=offline_set(tmp_path / "bdhs", "bdhs", 10),
    )
    _, run_dir = run(config)
    assert events(run_dir, "group") == []
    assert len(events(run_dir, "step")) == STEPS


class SilentWorker(FakeRolloutWorker):
    phrases = ("There is a red circle at the top.",)


def test_when_every_group_ties_the_run_stops_with_the_histogram(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(tmp_path, loop__stall_limit_s=0.5, loop__heartbeat_s=0.01)
    with pytest.raises(
        UserError, match=r"got no new pair for .*dropped \{'(identical|tie)': \d+\}"
    ):
        run(config, rollout=SilentWorker)
    waiting = "waiting for 4 online pairs: 0 buffered, "
    heartbeats = [line for line in caplog.messages if line.startswith(waiting)]
    assert "groups in flight, dropped so far {" in heartbeats[-1]
    groups = events(config.run.dir, "group")
    assert groups
    for event in groups:
        assert len(event["verdict"]) == config.rollout.num_completions


class HangingWorker(FakeRolloutWorker):
    """Never answers greedy requests, or never the others."""

    greedy: ClassVar[bool] = False

    async def generate(self, requests: list[Any]) -> list[Any]:
        if (requests[0].temperature == 0) == self.greedy:
            await asyncio.sleep(1000)
        return await super().generate(requests)


@pytest.mark.parametrize("greedy", [False, True])
def test_a_worker_that_never_answers_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, greedy: bool
) -> None:
    monkeypatch.setattr(HangingWorker, "greedy", greedy)
    config = make_config(tmp_path, loop__call_timeout_s=0.2)
    with pytest.raises(UserError, match=r"rollout worker: got no answer within 0\.2 s"):
        run(config, rollout=HangingWorker)


async def hang(*args: Any) -> None:
    await asyncio.sleep(1000)


CALLS = [
    (FakeLearner, "rendezvous", "learner"),
    (FakeLearner, "set_probe", "learner"),
    (FakeLearner, "load", "learner"),
    (FakeRolloutWorker, "score", "rollout worker"),
]


@pytest.mark.parametrize(("worker", "method", "peer"), CALLS)
def test_calls_outside_of_the_loop_have_a_limit_too(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    worker: type,
    method: str,
    peer: str,
) -> None:
    config = make_config(tmp_path, loop__call_timeout_s=1)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(5))
    monkeypatch.setattr(worker, method, hang)
    with pytest.raises(UserError, match=f"{peer}: got no answer within 1 s"):
        run(config, resume=True)


@pytest.mark.parametrize("dies_at", [1, 3, 4, 5, 8])
def test_kill_and_resume_trains_each_pair_once(tmp_path: Path, dies_at: int) -> None:
    config = make_config(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(dies_at))
    runtime, run_dir = run(config, resume=True)
    has_checkpoint = dies_at > 4
    assert len(events(run_dir, "resume")) == int(has_checkpoint)
    trained = trained_pairs(run_dir)
    assert len(trained) == STEPS * 4
    assert len(set(trained)) == len(trained)
    lines = read_lines(run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert runtime.handles["learner/0"].worker.weight == STEPS * 4


class SettlingWorker(FakeRolloutWorker):
    """Its groups take longer than validation, and less than a save of `SlowSavingLearner`."""

    async def generate(self, requests: list[Any]) -> list[Any]:
        if requests[0].num_completions > 1:
            await asyncio.sleep(0.3)
        return await super().generate(requests)


class SlowSavingLearner(FakeLearner):
    """Dies in the step after the first checkpoint, and keeps what a kill would leave on disk then."""

    def __init__(self, config: RunConfig, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(config, rank, world_size)
        self._run_dir = config.run.dir

    async def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        if step == 5:
            shutil.copytree(self._run_dir, self._run_dir.with_name("killed"))
            raise RuntimeError("killed")
        return await super().step(step, pairs)

    async def save(self, directory: str) -> None:
        await asyncio.sleep(0.6)
        super().save(directory)


def last_index(kinds: list[str], kind: str) -> int:
    return len(kinds) - 1 - kinds[::-1].index(kind)


def test_what_settles_while_a_checkpoint_is_written_belongs_to_the_next(
    tmp_path: Path,
) -> None:
    config = make_config(tmp_path, loop__max_staleness=1)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, rollout=SettlingWorker, learner=SlowSavingLearner)
    journal = tmp_path / "run" / "journal" / "events.jsonl"
    kinds = [event["event"] for event in read_events(journal)]
    validated = last_index(kinds, "validation")
    saved = last_index(kinds, "checkpoint")
    assert "group" in kinds[validated:saved]

    shutil.rmtree(tmp_path / "run")
    (tmp_path / "killed").rename(tmp_path / "run")
    _, run_dir = run(config, resume=True)
    trained = set(trained_pairs(run_dir))
    assert len(trained) == STEPS * 4
    assert trained <= {pair.id for pair in read_pairs(run_dir / "pairs")}
    outcomes = {event["id"]: event["outcome"] for event in events(run_dir, "group")}
    for pair_id in trained:
        assert outcomes[pair_id] == "pair"


def test_a_checkpoint_that_is_lost_with_the_run_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run's own error stays the one that is raised."""

    class DyingLearner(FakeLearner):
        is_dead = False

        async def step(self, step: int, pairs: list[PreferencePair]) -> Any:
            self.is_dead = step == 5
            if self.is_dead:
                raise RuntimeError("killed in its step")
            return await super().step(step, pairs)

        def written(self) -> WriteReport | None:
            if self.is_dead:
                raise RuntimeError("killed while it writes")
            return None

    with pytest.raises(RuntimeError, match="killed in its step"):
        run(make_config(tmp_path), learner=DyingLearner)
    told = "the checkpoint that was begun is lost: killed while it writes"
    assert told in caplog.messages


@pytest.mark.parametrize(
    ("error", "status", "why"),
    [
        (UserError("lr: expected less"), 2, "lr: expected less"),
        (RunFailed("learner/0: lost"), 1, "learner/0: lost"),
        (KeyError("a bug"), 1, "KeyError: 'a bug'"),
    ],
)
def test_the_journal_says_how_a_run_ended(
    tmp_path: Path, error: Exception, status: int, why: str
) -> None:
    class Failing(FakeLearner):
        async def step(self, step: int, pairs: list[PreferencePair]) -> Any:
            raise error

    with pytest.raises(type(error)):
        run(make_config(tmp_path), learner=Failing)
    (ended,) = events(tmp_path / "run", "ended")
    assert (ended["status"], ended["why"]) == (status, why)


def test_the_journal_says_that_a_run_did_not_start(tmp_path: Path) -> None:
    class Failing(FakeLearner):
        def start(self, master_address: str, master_port: int) -> Any:
            raise UserError("learner: expected a GPU")

    with pytest.raises(UserError):
        run(make_config(tmp_path), learner=Failing)
    (ended,) = events(tmp_path / "run", "ended")
    assert (ended["status"], ended["why"]) == (2, "learner: expected a GPU")


class RefusingLearner(FakeLearner):
    """Refuses the first pair of every batch."""

    async def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        result, _ = await super().step(step, pairs[1:])
        return result, [Dropped(pairs[0].id, "pair_too_long")]


def test_pairs_that_the_learner_refuses_are_counted(tmp_path: Path) -> None:
    _, run_dir = run(make_config(tmp_path), learner=RefusingLearner)
    last_line = read_lines(run_dir / "metrics.jsonl")[-1]
    assert last_line["pairs/dropped/pair_too_long"] == STEPS
    reasons = Counter(event["reason"] for event in events(run_dir, "discard"))
    assert reasons["pair_too_long"] == STEPS


class UnmovedLearner(FakeLearner):
    """Its publish sends weights whose change from the start policy has this norm."""

    norm: ClassVar[float] = 0.0

    def publish(self, version: int) -> tuple[WeightManifest, Any]:
        manifest, tensors = super().publish(version)
        return replace(manifest, change_norm=self.norm), tensors


class SkippingLearner(UnmovedLearner):
    """Refuses every pair, so that no step trains."""

    async def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        refused = [Dropped(pair.id, "step_skipped") for pair in pairs]
        return StepResult(step, {}, ()), refused


def test_engines_that_got_the_start_policy_after_training_stop_the_run(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        UserError,
        match="weight version 1: expected trained weights, got exactly those of the start",
    ):
        run(make_config(tmp_path / "base"), learner=UnmovedLearner)
    run(make_config(tmp_path / "skipped"), learner=SkippingLearner)


def test_a_resume_that_lost_the_training_stops(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(5))
    with pytest.raises(UserError, match="weight version 4: expected trained weights"):
        run(config, resume=True, learner=UnmovedLearner)


def test_weights_that_are_not_finite_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UnmovedLearner, "norm", float("nan"))
    with pytest.raises(
        UserError,
        match="weight version 1: expected finite weights, got a change of norm nan",
    ):
        run(make_config(tmp_path), learner=UnmovedLearner)


def watched(
    patience_s: float,
) -> tuple[type[FakeRolloutWorker], type[FakeLearner], list[bool]]:
    """A worker, a learner, and for every step whether a rollout call ended while the learner was in it.

    A step takes until one does, at most `patience_s`: events are counted, so a loaded machine changes nothing.
    """
    call_ended = asyncio.Event()
    rollouts_went_on: list[bool] = []

    class WatchedWorker(FakeRolloutWorker):
        delay_s = 0.01

        async def generate(
            self, requests: list[GenerationRequest]
        ) -> list[RolloutGroup | Dropped]:
            groups = await super().generate(requests)
            call_ended.set()
            return groups

    class WatchedLearner(FakeLearner):
        async def step(
            self, step: int, pairs: list[PreferencePair]
        ) -> tuple[StepResult, list[Dropped]]:
            # Calls that ended before this step do not count.
            call_ended.clear()
            try:
                async with asyncio.timeout(patience_s):
                    await call_ended.wait()
            except TimeoutError:
                pass
            rollouts_went_on.append(call_ended.is_set())
            return await super().step(step, pairs)

    return WatchedWorker, WatchedLearner, rollouts_went_on


def test_on_policy_no_rollout_runs_beside_a_step(tmp_path: Path) -> None:
    # Ten times what a call takes.
    worker, learner, rollouts_went_on = watched(patience_s=0.1)
    config = make_config(tmp_path, loop__max_staleness=0)
    run(config, rollout=worker, learner=learner)
    assert rollouts_went_on == [False] * STEPS


def test_rollouts_overlap_with_learning_when_staleness_allows(tmp_path: Path) -> None:
    worker, learner, rollouts_went_on = watched(patience_s=2.0)
    config = make_config(tmp_path, loop__max_staleness=1)
    run(config, rollout=worker, learner=learner)
    # Nothing is left to sample for beside the last step.
    assert len(rollouts_went_on) == STEPS
    assert sum(rollouts_went_on) >= STEPS - 2


class LateFirstWorker(FakeRolloutWorker):
    """Answers its first training call after the second one."""

    num_training_calls = 0

    async def generate(
        self, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        if not requests[0].id.startswith("evaluation/"):
            self.num_training_calls += 1
            if self.num_training_calls == 1:
                await asyncio.sleep(0.3)
        return await super().generate(requests)


def test_a_deterministic_run_settles_groups_in_the_order_of_admission(
    tmp_path: Path,
) -> None:
    order: list[list[str]] = []
    for worker in (FakeRolloutWorker, LateFirstWorker):
        config = make_config(tmp_path / worker.__name__, rollout__deterministic=True)
        _, run_dir = run(config, rollout=worker)
        order.append([group["id"] for group in events(run_dir, "group")])
    in_time, late = order
    # How far rollouts get beyond the last step depends on time.
    num_groups = min(len(in_time), len(late))
    assert num_groups >= STEPS * 4
    assert in_time[:num_groups] == late[:num_groups]

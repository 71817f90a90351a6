"""Rollouts beside the judge: what goes on while it thinks, what must not change by it, and what it may not cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from common.errors import UserError
from common.protocols import GenerationRequest
from common.records import Dropped, RolloutGroup, Verdict
from reward.worker import RewardWorker
from tests.cluster.runs import (
    STEPS,
    events,
    killed_at,
    make_config,
    run,
    trained_pairs,
)
from tests.fakes.rollout import FakeRolloutWorker


class CountingWorker(FakeRolloutWorker):
    """Counts the groups that it was asked for to train on."""

    asked: ClassVar[list[str]] = []

    async def generate(
        self, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        if requests[0].num_completions > 1:
            self.asked += [request.id for request in requests]
        return await super().generate(requests)


class GatedJudge(RewardWorker):
    """Answers its first call when so many groups were sampled, or after a second of patience."""

    opens_at: ClassVar[int] = 0
    most_asked: ClassVar[list[int]] = []

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        for _ in range(100):
            if len(CountingWorker.asked) >= self.opens_at:
                break
            await asyncio.sleep(0.01)
        if not self.most_asked:
            self.most_asked.append(len(CountingWorker.asked))
        return await super().judge(groups)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingWorker, "asked", [])
    monkeypatch.setattr(GatedJudge, "most_asked", [])


def test_all_that_admission_allows_is_sampled_while_the_judge_thinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 1 and 2 take 8 pairs: 4 calls of 2 groups, of which one worker has only two at once."""
    monkeypatch.setattr(GatedJudge, "opens_at", 8)
    config = make_config(tmp_path, loop__max_staleness=1)
    run(config, rollout=CountingWorker, reward=GatedJudge)
    assert GatedJudge.most_asked == [8]


def test_behind_a_judge_that_is_full_sampling_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One place: a call is judged, and the two tasks of the worker hold a sampled one. More would only grow old."""
    monkeypatch.setattr(GatedJudge, "opens_at", 7)
    config = make_config(tmp_path, loop__max_staleness=1, reward__concurrency=1)
    run(config, rollout=CountingWorker, reward=GatedJudge)
    assert GatedJudge.most_asked == [6]


class UnevenJudge(RewardWorker):
    """Takes a time for every call that has nothing to do with its order."""

    num_calls = 0

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        self.num_calls += 1
        await asyncio.sleep((0.03, 0.0, 0.01)[self.num_calls % 3])
        return await super().judge(groups)


def test_a_slow_judge_changes_nothing_in_a_deterministic_run(tmp_path: Path) -> None:
    """Order of groups and trained pairs, with everything on-policy."""
    orders: list[list[str]] = []
    trained: list[list[str]] = []
    for judge in (RewardWorker, UnevenJudge):
        config = make_config(
            tmp_path / judge.__name__,
            rollout__deterministic=True,
            loop__max_staleness=0,
        )
        _, run_dir = run(config, reward=judge)
        orders.append([group["id"] for group in events(run_dir, "group")])
        trained.append(trained_pairs(run_dir))
    first, second = orders
    num_groups = min(len(first), len(second))
    assert num_groups >= STEPS * 4
    assert first[:num_groups] == second[:num_groups]
    assert trained[0] == trained[1]


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("dies_at", [3, 5, 8])
def test_killed_beside_a_slow_judge_each_pair_is_trained_once(
    tmp_path: Path, dies_at: int, staleness: int
) -> None:
    config = make_config(tmp_path, loop__max_staleness=staleness)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(dies_at), reward=UnevenJudge)
    runtime, run_dir = run(config, resume=True, reward=UnevenJudge)
    trained = trained_pairs(run_dir)
    assert len(set(trained)) == len(trained) == STEPS * 4
    assert runtime.handles["learner/0"].worker.weight == STEPS * 4
    for step in events(run_dir, "step"):
        assert len(step["pairs"]) == 4
    # No pair was older than allowed.
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    ages = [json.loads(line).get("staleness/max", 0) for line in lines]
    assert max(ages) <= staleness


class BuggyJudge(RewardWorker):
    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        raise ZeroDivisionError("a bug of the judge")


def test_a_bug_of_the_judge_ends_training_as_itself(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="a bug of the judge"):
        run(make_config(tmp_path), reward=BuggyJudge)


class LateBuggyJudge(RewardWorker):
    """Fails where the final answers are compared."""

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        if groups[0].id.startswith("evaluation/"):
            raise ZeroDivisionError("a bug of the judge")
        return await super().judge(groups)


def test_a_finished_run_keeps_its_scorecard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the win rate is missing, and the reason is counted and told."""
    _, run_dir = run(make_config(tmp_path), reward=LateBuggyJudge)
    cards = json.loads((run_dir / "scorecard.json").read_text())
    final = cards["final"]["suites"]["shapes"]
    assert "win_rate" not in final["metrics"]
    assert "chair_s" in final["metrics"]
    assert final["dropped"] == {"judge_failed": 6}
    assert "6 have no verdict" in caplog.text
    assert "a bug of the judge" in caplog.text


USERS_JUDGE = """
import asyncio

class Judge:
    def __init__(self, word):
        self.word = word

    async def judge(self, group):
        await asyncio.sleep(0.001)
        if group.prompt.id.endswith("1"):
            raise LookupError("no idea")
        return [float(self.word in completion.text) for completion in group.completions]
"""


def test_a_users_judge_trains_a_run(tmp_path: Path) -> None:
    """From the command line alone; what it fails on is dropped and counted with its line."""
    judge = tmp_path / "my_judge.py"
    judge.write_text(USERS_JUDGE)
    config = make_config(
        tmp_path,
        reward__judge__kind=f"{judge}:Judge",
        reward__judge__word="star",
        reward__cache=tmp_path / "verdicts",
    )
    _, run_dir = run(config)
    assert len(set(trained_pairs(run_dir))) == STEPS * 4
    for group in events(run_dir, "group"):
        if group["outcome"] == "pair":
            assert "star" in group["completions"][group["chosen"][0]]
        elif group["outcome"] == "judge_failed":
            assert group["detail"].endswith(f"LookupError: no idea ({judge}, line 11)")
    outcomes = {group["outcome"] for group in events(run_dir, "group")}
    assert {"pair", "judge_failed"} <= outcomes
    assert list((tmp_path / "verdicts").rglob("*.json"))


def test_a_judge_that_never_answers_right_stops_the_run(tmp_path: Path) -> None:
    """Within seconds, not after `loop.stall_limit_s`; four rounds of 2 places are 8 groups."""
    judge = tmp_path / "my_judge.py"
    judge.write_text(
        "def judge(prompt, completions):\n    return completions[0].score\n"
    )
    config = make_config(
        tmp_path, reward__judge__kind=f"{judge}:judge", reward__concurrency=2
    )
    with pytest.raises(
        UserError,
        match=r"^reward\.judge: expected verdicts, got none for the first 8 groups.*AttributeError.*, line 2\)",
    ):
        run(config)
    assert len(events(config.run.dir, "group")) >= 7

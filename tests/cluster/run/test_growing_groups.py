"""Groups that tie though their answers differ: sampled on up to `rollout.max_completions`, and counted once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.run.auditing import audit
from common.errors import UserError
from common.protocols import GenerationRequest
from common.records import Dropped, RolloutGroup, Verdict
from reward.worker import RewardWorker
from tests.cluster.runs import events, killed_at, make_config, run, trained_pairs
from tests.fakes.rollout import FakeRolloutWorker

BEST = "The best answer."


class ThreeAnswers(FakeRolloutWorker):
    phrases: Sequence[str] = ("One.", "Another.", BEST)


class KnowsTheBest(RewardWorker):
    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        return [Verdict(tuple(map(score, texts_of(group)))) for group in groups]


class NeverDecides(RewardWorker):
    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        return [Verdict((0.5,) * len(group.completions)) for group in groups]


class CannotGoOn(ThreeAnswers):
    """An engine that refuses a group's second call."""

    async def start(self) -> dict[str, Any]:
        self.begun: set[str] = set()
        return await super().start()

    async def generate(
        self, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        results: list[RolloutGroup | Dropped] = []
        for request in requests:
            if request.id in self.begun:
                results.append(Dropped(request.id, "cut_off"))
            else:
                results += await super().generate([request])
            if request.num_completions > 1:
                self.begun.add(request.id)
        return results


def texts_of(group: RolloutGroup) -> list[str]:
    return [completion.text for completion in group.completions]


def score(text: str) -> float:
    return float(text == BEST)


def config_of(tmp_path: Path, **changes: Any) -> Any:
    values = {
        "rollout__deterministic": True,
        "rollout__max_completions": 5,
        "loop__max_staleness": 0,
    }
    return make_config(tmp_path, **values | changes)


def is_undecided(texts: Sequence[str]) -> bool:
    return len(set(texts)) > 1 and len(set(map(score, texts))) == 1


def test_a_group_grows_while_it_is_undecided(tmp_path: Path) -> None:
    """k is 2, then 4, then 5: as many as there is room for."""
    _, run_dir = run(config_of(tmp_path), rollout=ThreeAnswers, reward=KnowsTheBest)
    groups = events(run_dir, "group")
    sizes = set()
    for group in groups:
        texts = group["completions"]
        sizes.add(len(texts))
        before = {2: [], 4: [2], 5: [2, 4]}[len(texts)]
        assert all(is_undecided(texts[:k]) for k in before)
        assert len(texts) == 5 or not is_undecided(texts)
        assert len(group["verdict"]) == len(group["weight_versions"]) == len(texts)
        outcome = "identical" if len(set(texts)) == 1 else "pair"
        assert group["outcome"] == ("tie" if is_undecided(texts) else outcome)
    assert sizes == {2, 4, 5}
    account = audit(run_dir)
    assert account.faults == []
    assert account.num_groups == len(groups)


def test_a_growing_group_waits_for_no_other(tmp_path: Path) -> None:
    """Not deterministic, rollouts running ahead: the account is as exact."""
    changes = {"rollout__deterministic": False, "loop__max_staleness": 1}
    config = config_of(tmp_path, **changes)
    _, run_dir = run(config, rollout=ThreeAnswers, reward=KnowsTheBest)
    assert audit(run_dir).faults == []
    assert max(len(group["completions"]) for group in events(run_dir, "group")) > 2


def test_a_killed_run_trains_on_what_it_would_have_trained_on(tmp_path: Path) -> None:
    parts = {"rollout": ThreeAnswers, "reward": KnowsTheBest}
    _, calm = run(config_of(tmp_path / "calm"), **parts)
    config = config_of(tmp_path / "killed")
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(7), **parts)
    _, killed = run(config, resume=True, **parts)
    assert trained_pairs(killed) == trained_pairs(calm)
    assert audit(killed).faults == []


def test_what_never_decides_ends_as_a_tie(tmp_path: Path) -> None:
    config = config_of(tmp_path, loop__stall_limit_s=1)
    with pytest.raises(UserError, match="tie"):
        run(config, rollout=ThreeAnswers, reward=NeverDecides)
    groups = events(tmp_path / "run", "group")
    assert {group["outcome"] for group in groups} == {"tie", "identical"}
    for group in groups:
        num_completions = 5 if group["outcome"] == "tie" else 2
        assert len(group["completions"]) == num_completions


def test_a_refusal_in_the_middle_is_the_groups_reason(tmp_path: Path) -> None:
    _, run_dir = run(config_of(tmp_path), rollout=CannotGoOn, reward=KnowsTheBest)
    account = audit(run_dir)
    assert account.faults == []
    assert account.drops["cut_off"] > 0
    assert "tie" not in account.drops


def test_less_than_a_group_begins_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least num_completions, got 3 and 4"):
        make_config(tmp_path, rollout__num_completions=4, rollout__max_completions=3)


def test_a_policy_gradient_takes_groups_of_one_size(tmp_path: Path) -> None:
    changes = {"rollout__num_completions": 4, "rollout__max_completions": 8}
    with pytest.raises(UserError, match="expected none for the rloo loss"):
        make_config(tmp_path, learner__loss__kind="rloo", **changes)

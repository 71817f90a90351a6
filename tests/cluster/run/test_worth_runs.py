"""Runs whose prompts are drawn by worth: the account is exact, and a kill changes nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.run.auditing import audit
from common.data.records_on_disk import id_key
from common.metrics import read_lines
from common.protocols import GenerationRequest
from common.records import Dropped, RolloutGroup
from tests.cluster.runs import (
    STEPS,
    events,
    killed_at,
    make_config,
    run,
    trained_pairs,
)
from tests.fakes.engine import FakeEngine
from tests.fakes.rollout import FakeRolloutWorker


class SolvedWorker(FakeRolloutWorker):
    """Says the same every time of all prompts but each fourth."""

    async def generate(
        self, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        solved = FakeEngine(self.phrases[:1])
        groups: list[RolloutGroup | Dropped] = []
        for request in requests:
            engine = self.engine if request.prompt.id[-1] in "048" else solved
            groups += await engine.generate([request])
        return groups


def config_of(tmp_path: Path, **changes: Any) -> Any:
    values = {
        "rollout__draw": "by_worth",
        "rollout__deterministic": True,
        "rollout__num_completions": 4,
        "loop__max_staleness": 0,
        "data__prompts__count": 100,
    }
    return make_config(tmp_path, **values | changes)


def test_a_killed_run_trains_on_what_it_would_have_trained_on(tmp_path: Path) -> None:
    _, calm = run(config_of(tmp_path / "calm"), rollout=SolvedWorker)
    config = config_of(tmp_path / "killed")
    with pytest.raises(RuntimeError, match="killed"):
        run(config, rollout=SolvedWorker, learner=killed_at(7))
    _, killed = run(config, resume=True, rollout=SolvedWorker)
    assert trained_pairs(killed) == trained_pairs(calm)
    assert len(set(trained_pairs(calm))) == STEPS * 4
    assert audit(calm).faults == audit(killed).faults == []


@pytest.mark.parametrize("deterministic", [True, False])
def test_every_drop_is_counted(tmp_path: Path, deterministic: bool) -> None:
    config = config_of(tmp_path, rollout__deterministic=deterministic)
    _, run_dir = run(config, rollout=SolvedWorker)
    account = audit(run_dir)
    assert account.faults == []
    groups = events(run_dir, "group")
    assert len({group["id"] for group in groups}) == len(groups) == account.num_groups
    outcomes = Counter(group["outcome"] for group in groups)
    assert outcomes["identical"] > 0
    assert account.num_groups == account.num_accepted + sum(account.drops.values())
    line = read_lines(run_dir / "metrics.jsonl")[-1]
    # Those of the last rounds have not counted yet.
    assert 0 < line["prompts/asked"] <= len({group["prompt"] for group in groups})
    assert 0 < line["prompts/worth_new"] < 1
    assert 1 < line["prompts/effective"] <= 100


def test_what_bdhs_makes_of_a_prompt_says_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path, mixture__online_bdhs_fraction=0.5)
    _, run_dir = run(config, rollout=SolvedWorker)
    assert audit(run_dir).faults == []
    judged = set()
    for group in events(run_dir, "group"):
        if group["source"] == "online":
            judged.add(group["prompt"])
    state = json.loads(
        (run_dir / "checkpoints" / f"step_{STEPS:06d}" / "state.json").read_text()
    )
    records = state["rounds"]["records"]["by_prompt"]
    assert 0 < len(records) <= len(judged)
    assert set(records) <= {str(id_key(prompt_id)) for prompt_id in judged}


def test_prompts_that_teach_take_over(tmp_path: Path) -> None:
    shares = {}
    for draw in ("epochs", "by_worth"):
        config = config_of(tmp_path / draw, rollout__draw=draw, learner__num_steps=20)
        _, run_dir = run(config, rollout=SolvedWorker)
        groups = events(run_dir, "group")
        taught = [group["outcome"] == "pair" for group in groups]
        shares[draw] = sum(taught) / len(taught)
    assert shares["by_worth"] > 2 * shares["epochs"]

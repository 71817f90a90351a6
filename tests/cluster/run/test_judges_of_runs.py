"""Whole runs with judges that see: their engines, and a budget that is used up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cluster.placement.bundles import plan
from cluster.run.run_dir import RunDir
from common.errors import Halted, UserError
from common.metrics import read_lines
from tests.chat_server import Answer, Asked, ChatServer, completion
from tests.cluster.judged_runs import JudgingWorker, prefers_first, vlm
from tests.cluster.runs import STEPS, events, make_config, run, trained_pairs


def test_a_judges_engines_have_places_of_their_own(tmp_path: Path) -> None:
    config = vlm(tmp_path, reward__num_workers=2)
    names = [bundle.name for bundle in plan(config)]
    assert names == [
        "rollout/0",
        "reward/0",
        "reward/1",
        "judge/0",
        "judge/1",
        "learner/0",
    ]
    runtime, run_dir = run(config, rollout=JudgingWorker)
    assert {"judge/0", "judge/1"} <= set(runtime.handles)
    assert len(trained_pairs(run_dir)) == STEPS * 4
    for event in events(run_dir, "group"):
        if event["outcome"] == "pair":
            (chosen,) = event["chosen"]
            assert "circle" in event["completions"][chosen]


def by_circle(asked: Asked) -> Answer:
    return completion(f"Better: {'A' if prefers_first(asked.text) else 'B'}")


def endpoint(tmp_path: Path, url: str, calls: int, **changes: Any) -> Any:
    judge = (
        f'{{ kind = "endpoint", base_url = "{url}", model = "judge", budget = {{ calls = {calls} }}, '
        'template = "{{ question }} {{ first }} > {{ second }}" }'
    )
    return make_config(tmp_path, reward__judge=judge, **changes)


def test_a_used_up_budget_stops_with_the_state_saved_and_a_larger_one_goes_on(
    tmp_path: Path,
) -> None:
    """Checkpoints come every 4 steps; the run stops after some other step, and that is what it goes on from."""
    changes = {"data__prompts__count": 400, "loop__max_staleness": 0}
    with ChatServer(by_circle) as server:
        # Questions differ by their picture, so each costs two calls.
        small = endpoint(tmp_path, server.url, 26, **changes)
        with pytest.raises(Halted, match=r"budget\.calls: .*--resume$") as error:
            run(small)
        assert isinstance(error.value, UserError)
        run_dir = small.run.dir
        num_steps = len(read_lines(run_dir / "metrics.jsonl"))
        assert 0 < num_steps < STEPS and num_steps % 4
        with RunDir(small, resume=True) as owned:
            latest = owned.latest()
        assert latest is not None and latest.state.step == num_steps
        num_asked = len(server.asked)
        assert num_asked == 26
        large = endpoint(tmp_path, server.url, 1000, **changes)
        run(large, resume=True)
    steps = [event["step"] for event in events(run_dir, "step")]
    # No step was done twice.
    assert steps == list(range(1, STEPS + 1))
    assert len(set(trained_pairs(run_dir))) == STEPS * 4


def test_another_judge_is_another_run(tmp_path: Path) -> None:
    with ChatServer(by_circle) as server:
        run(endpoint(tmp_path, server.url, 1000))
        other = endpoint(tmp_path, f"{server.url}/", 1000)
        with pytest.raises(UserError, match=re.escape("reward.judge.base_url")):
            RunDir(other, resume=True)

"""Workers of whole runs are killed or hang: the runs go on, and every group has one outcome."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.run.experiment import MAX_LOSSES
from common.errors import RunFailed
from common.metrics import read_lines
from tests.cluster.runs import events
from tests.cluster.supervision.chaos_runs import (
    BROADCAST,
    Chaos,
    Rollout,
    check,
    config_of,
    run,
)

pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.mark.parametrize(("what", "workers"), [("kill", 1), ("hang", 2)])
@pytest.mark.parametrize("method", ["generate", "load", "rank", "step"])
def test_a_worker_that_is_lost_comes_back(
    tmp_path: Path, method: str, workers: int, what: str
) -> None:
    config = config_of(
        tmp_path, rollout__num_workers=workers, reward__num_workers=workers
    )
    chaos = Chaos((method, 5, what))
    run_dir = run(config, chaos)
    assert chaos.plan == []
    check(run_dir)
    (restart,) = events(run_dir, "restart")
    kind = restart["name"].partition("/")[0]
    kinds = {"rank": "reward", "step": "learner"}
    assert kind == kinds.get(method, "rollout")
    cause = "the fake has died" if what == "kill" else "it has said nothing for 0.5 s"
    assert restart["cause"] == cause
    assert read_lines(run_dir / "metrics.jsonl")[-1][f"restarts/{kind}"] == 1


@pytest.mark.parametrize(("what", "workers"), [("kill", 1), ("kill", 2), ("hang", 2)])
@pytest.mark.parametrize("method", ["receive", "prove"])
def test_an_engine_that_is_lost_in_a_broadcast_comes_back(
    tmp_path: Path, method: str, workers: int, what: str
) -> None:
    """With one engine the group waits for nobody else; with two, the other one gets the weights of this very push."""
    config = config_of(tmp_path, rollout__num_workers=workers, **BROADCAST)
    chaos = Chaos((method, 5, what))
    run_dir = run(config, chaos)
    assert chaos.plan == []
    check(run_dir)
    (restart,) = events(run_dir, "restart")
    assert restart["name"].startswith("rollout/")
    cause = "the fake has died" if what == "kill" else "it has said nothing for 0.5 s"
    assert restart["cause"] == cause


@pytest.mark.parametrize("workers", [1, 2])
def test_an_engine_that_lives_but_stalls_in_a_broadcast_is_replaced(
    tmp_path: Path, workers: int
) -> None:
    """Its heart beats, so that only who waits for its part of the push can tell."""
    config = config_of(tmp_path, rollout__num_workers=workers, **BROADCAST)
    chaos = Chaos(("receive", 5, "stall"))
    run_dir = run(config, chaos)
    assert chaos.plan == []
    check(run_dir)
    (restart,) = events(run_dir, "restart")
    assert restart["name"].startswith("rollout/")
    told = "got no answer within 1 s of the end of a weight push; "
    assert restart["cause"].startswith(told)


def test_too_many_restarts_end_the_run_with_the_cause(tmp_path: Path) -> None:
    config = config_of(tmp_path, cluster__max_restarts_per_hour=1)
    told = r"^rollout/0: the fake has died.*; expected at most 1 restarts an hour"
    with pytest.raises(RunFailed, match=told):
        run(config, Chaos(("generate", 3, "kill"), ("generate", 6, "kill")))


def test_an_error_of_a_worker_that_is_well_still_ends_the_run(tmp_path: Path) -> None:
    class Broken(Rollout):
        async def generate(self, requests: Any) -> Any:
            raise KeyError("a bug")

    config = config_of(tmp_path)
    with pytest.raises(KeyError, match="a bug"):
        run(config, Chaos(), Broken)
    assert events(config.run.dir, "restart") == []


def test_the_roster_says_who_runs_where(tmp_path: Path) -> None:
    run_dir = run(config_of(tmp_path), Chaos(("rank", 3, "kill")))
    roster = json.loads((run_dir / "workers.json").read_text())
    assert roster["controller"]["processes"][0]["pid"] > 0
    workers = roster["workers"]
    assert set(workers) == {"rollout/0", "reward/0", "learner/0"}
    assert workers["reward/0"]["number"] == 1
    assert workers["rollout/0"]["number"] == 0
    assert workers["rollout/0"]["processes"][0]["pid"] > 0


strikes = st.tuples(
    st.sampled_from(["generate", "load", "receive", "prove", "rank", "step"]),
    st.integers(1, 8),
    st.sampled_from(["kill", "kill", "hang"]),
)


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    plan=st.lists(strikes, max_size=5, unique_by=lambda entry: entry[:2]).filter(
        lambda plan: sum(entry[0] == "step" for entry in plan) < MAX_LOSSES
    ),
    staleness=st.integers(0, 2),
    interval=st.sampled_from([1, 2]),
    workers=st.integers(1, 3),
    transport=st.sampled_from(["object_store", "broadcast"]),
)
def test_any_deaths_leave_one_outcome_per_group(
    tmp_path: Path,
    plan: list[tuple[str, int, str]],
    staleness: int,
    interval: int,
    workers: int,
    transport: str,
) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    config = config_of(
        folder,
        loop__max_staleness=staleness,
        loop__publish_interval=interval,
        rollout__num_workers=workers,
        reward__num_workers=workers,
        cluster__max_restarts_per_hour=100,
        **BROADCAST | {"weights__transport": transport},
    )
    check(run(config, Chaos(*plan)))

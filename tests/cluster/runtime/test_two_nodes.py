"""A cluster of two nodes with eight GPUs each: who sits where, and what a run is told that cannot have its place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.runtime.two_nodes import RUNS, run_of, split

pytestmark = pytest.mark.real

MODULE = "tests.cluster.runtime.two_nodes"


def start(*words: str) -> subprocess.Popen[str]:
    """A process of its own: one that has loaded models could not fork Ray's."""
    return subprocess.Popen(
        [sys.executable, "-m", MODULE, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def answer(process: subprocess.Popen[str]) -> Any:
    """The first line of JSON that it writes."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(("{", '"')):
            return json.loads(line)
    raise AssertionError("no answer")


def end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(60)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    nodes = start("serve")
    yield answer(nodes)
    end(nodes)


@pytest.fixture(scope="module")
def placed(address: str) -> dict[str, Any]:
    process = start("place", address)
    layouts: dict[str, Any] = answer(process)
    end(process)
    assert layouts.keys() == RUNS.keys()
    for layout in layouts.values():
        for name, (node, _) in layout["started"].items():
            assert layout["nodes"][name] == node
    return layouts


def letters(layout: dict[str, Any], kind: str) -> str:
    """The nodes of KIND/0, KIND/1 …; the node of learner/0 is called A, the other one B."""
    nodes: dict[str, str] = layout["nodes"]
    names = [name for name in nodes if name.startswith(f"{kind}/")]
    first = nodes["learner/0"]
    row = [nodes[f"{kind}/{index}"] for index in range(len(names))]
    return "".join("A" if node == first else "B" for node in row)


def gpus(layout: dict[str, Any]) -> dict[str, str]:
    return {name: visible for name, (_, visible) in layout["started"].items()}


def test_eight_ranks_fill_a_node_and_eight_engines_the_other(
    placed: dict[str, Any],
) -> None:
    layout = placed["8 ranks, 8 engines"]
    assert letters(layout, "learner") == "A" * 8
    assert letters(layout, "rollout") == "B" * 8
    # A reward worker without GPUs sees none of its node.
    assert gpus(layout)["reward/0"] == ""


def test_twelve_ranks_go_on_from_one_node_to_the_next(placed: dict[str, Any]) -> None:
    layout = placed["12 ranks, 2 engines of 2"]
    assert letters(layout, "learner") == "A" * 8 + "B" * 4
    assert letters(layout, "rollout") == "BB"
    # Both GPUs of an engine are in one bundle.
    assert gpus(layout)["rollout/0"].count(",") == 1


def test_a_judge_has_gpus_of_its_own(placed: dict[str, Any]) -> None:
    layout = placed["8 ranks, 4 engines, judge of 4"]
    assert letters(layout, "learner") == "A" * 8
    assert letters(layout, "rollout") == "BBBB"
    assert letters(layout, "judge") == "B"
    judges = set(gpus(layout)["judge/0"].split(","))
    assert len(judges) == 4
    assert gpus(layout)["rollout/1"] not in judges


def test_colocated_ranks_have_the_gpus_of_their_engines(placed: dict[str, Any]) -> None:
    layout = placed["colocated 8"]
    assert letters(layout, "learner") == letters(layout, "rollout") == "A" * 8
    assert gpus(layout)["learner/1"] == gpus(layout)["rollout/1"] != ""
    layout = placed["colocated, 4 engines of 2"]
    # The second rank beside the first engine.
    assert gpus(layout)["learner/1"] == gpus(layout)["rollout/0"].split(",")[1]


def refusal(address: str, *words: str, limit_s: float = 30) -> str:
    process = start("want", address, str(limit_s), *run_of(*words))
    line: str = answer(process)
    end(process)
    return line


def test_more_than_there_is_is_refused_at_once(address: str) -> None:
    assert refusal(address, "--learner.num_ranks=24") == (
        "placement: expected 25 GPUs for 26 actors, got 16 in the cluster; lower rollout.num_gpus, learner.num_gpus "
        "or num_workers"
    )
    assert refusal(address, *split(12)) == (
        "placement: expected a node with 12 GPUs and 1 CPUs for rollout/0, got at most 8 GPUs and 64 CPUs on one; "
        "lower rollout.num_gpus or num_cpus, or add a larger node"
    )
    line = refusal(address, *split(5), "--rollout.num_workers=3")
    assert line.startswith("placement: expected room for rollout/2 (5 GPUs, 1 CPUs)")
    assert "got nodes of 8, 8 GPUs" in line


def test_two_runs_do_not_wait_for_each_other(address: str) -> None:
    """Each wants 12 of 16 GPUs. The second is told who is in its way, or waits, and never holds a part of them."""
    words = ("--learner.num_ranks=8", "--rollout.num_workers=4")
    first = start("hold", address, *run_of(*words))
    assert answer(first) == "reserved"
    line = refusal(address, *words, limit_s=1)
    assert line.startswith(
        "placement: expected a reservation within 1 s (cluster.start_timeout_s), got 4 of 16 GPUs free for 12, held "
        "by the first run (process "
    )
    assert "(12 GPUs, 13 CPUs)" in line
    second = start("want", address, "60", *run_of(*words))
    end(first)
    assert answer(second) == "reserved"
    end(second)

"""The doctor and the actors' environment on a real cluster of two nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.real_runs import command, run_to_end

pytestmark = pytest.mark.real

VALUE = f"value-{uuid4().hex}"
SECRET = f"secret-{uuid4().hex}"


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run_dir = tmp_path_factory.mktemp("two_nodes") / "runs" / "one"
    words = command("tests.cluster.health.two_nodes", run_dir, VALUE, SECRET)
    last_line = run_to_end(words, 200).splitlines()[-1]
    result: dict[str, Any] = json.loads(last_line)
    # The doctor leaves nothing behind.
    assert not Path(run_dir).parent.exists()
    return result


def test_the_doctor_asks_every_node(answer: dict[str, Any]) -> None:
    report = answer["report"]
    assert report["ready"], report
    states = {check["check"]: check["state"] for check in report["checks"]}
    assert states["cluster"].startswith("2 nodes, 2 CPUs, 0 GPUs; the run reserves 2")
    assert states["environment"].startswith("the same on all nodes: Python 3.1")
    assert states["run.dir"].endswith("runs/one is shared by all nodes")
    assert states["model folder"] == "common/shapes/policy is there on all nodes"
    assert states["clocks"].startswith("within 0.")
    nodes = [name for name in states if name.startswith("node ")]
    assert len({name.partition(":")[0] for name in nodes}) == 2


def test_actors_of_all_nodes_get_the_runs_environment(answer: dict[str, Any]) -> None:
    assert (
        answer["seen"]
        == [
            {
                "NCCL_DEBUG": VALUE,
                "SIGHTLINE_TEST_TOKEN": SECRET,
                "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
            }
        ]
        * 2
    )


def test_a_passed_value_is_written_nowhere(answer: dict[str, Any]) -> None:
    """Ray does write the variables of `cluster.env`: the search finds what is there."""
    assert answer["traces"] == {VALUE: True, SECRET: False}

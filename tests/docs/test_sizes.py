"""The sizes that docs/cluster.md names are the planner's, within a tenth."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.planner.gpu_kinds import GIB, GPU_KINDS
from cluster.planner.plan import Plan, plan_run
from cluster.planner.shape import shape_of
from cluster.runtime.judge_engines import judge_seats
from common.config.overrides import load_config
from tests.cluster.planner.model_configs import write

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def device(plan: Plan, role: str) -> float:
    (seat,) = [seat for seat in plan.seats if seat.role == role]
    return seat.device_bytes / GIB


def gpus(plan: Plan) -> float:
    return sum(seat.count * seat.gpus for seat in plan.seats)


ROWS: dict[str, Callable[[Plan], list[float]]] = {
    "GPUs, nodes of 8": lambda plan: [gpus(plan), plan.nodes.count],
    "GiB of an engine's GPU, of a rank's": lambda plan: [
        device(plan, "rollout"),
        device(plan, "learner"),
    ],
    "GB of a push, of the adapter alone": lambda plan: [plan.work.push_bytes / 1e9],
    "GiB of shared memory on the fullest node": lambda plan: [
        plan.nodes.shared_memory / GIB
    ],
    "GiB of the object store, in it": lambda plan: [plan.nodes.object_store / GIB],
    "GiB of `run.dir`": lambda plan: [plan.nodes.disk / GIB],
}


def table() -> dict[str, list[str]]:
    """Label -> cells, of the table of sizes; its first row names the presets."""
    section = PAGE.read_text().partition("## Sizes")[2].partition("\n## ")[0]
    rows = {}
    for line in section.splitlines():
        if line.startswith("| "):
            label, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows[label.strip()] = cells
    return rows


@pytest.mark.parametrize("column", [0, 1])
def test_the_page_says_what_the_planner_says(column: int, tmp_path: Path) -> None:
    rows = table()
    preset = rows["preset"][column]
    config = load_config(Path(f"cluster/configs/{preset}.toml"))
    paths = {config.model.path, *(seat.eye.path for seat in judge_seats(config))}
    shapes = {path: shape_of(write(Path(path).name, tmp_path)) for path in paths}
    plan = plan_run(config, GPU_KINDS["h100"], shapes)
    assert set(rows) - {"preset"} == set(ROWS)
    for label, figures in ROWS.items():
        written = [float(number) for number in NUMBER.findall(rows[label][column])]
        assert written == pytest.approx(figures(plan), rel=0.1), label

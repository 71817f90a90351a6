"""The comparison's page, and that each of its arms is a configuration that exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.paper_arms import ARMS, PAIR_SETS
from benchmarks.paper_page import METRICS, cell, table, write_page
from cluster.bdhs_job import job_of
from cluster.generate import build_parser
from common.overrides import load_config

ROOT = Path(__file__).parents[2]


def result() -> dict[str, object]:
    def card(value: float) -> dict[str, float]:
        return {name: value for name, _ in METRICS} | {"mean_length": 20 * value}

    intervals = {name: [0.2, 0.3] for name, _ in METRICS}
    arm = {"title": "Mixed | DPO", "seeds": [card(0.1), card(0.2), card(0.3)]}
    return {
        "baseline": card(0.25) | {"intervals": intervals},
        "arms": {"mixed": arm},
        "not_run": ["RLOO"],
        "seeds": [0, 1, 2],
        "steps": 4,
        "scenes": 5,
    }


@pytest.mark.parametrize(
    ("values", "interval", "expected"),
    [
        ([0.1, 0.2, 0.6], None, "0.300 (0.100 – 0.600)"),
        ([0.25], [0.2, 0.3], "0.250 (0.200 – 0.300)"),
        ([1.0, 1.0], None, "1.000"),
        ([20.0, 22.0], None, "21.0 (20.0 – 22.0)"),
    ],
)
def test_a_cell_is_mean_and_range(values: list[float], interval: list[float] | None, expected: str) -> None:
    assert cell(values, interval) == expected


def test_the_page_has_one_row_per_method_and_its_plot(tmp_path: Path) -> None:
    write_page(result(), tmp_path)
    rows = [line for line in (tmp_path / "paper_table.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert rows[3].startswith("| Mixed / DPO | 0.200 (0.100 – 0.300) |")
    assert len({row.count("|") for row in rows}) == 1
    assert (tmp_path / "paper_table.svg").read_text().count("<svg") == 1
    assert "seeds 0, 1, 2" in table(result())
    assert "Not run here: RLOO." in table(result())


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_valid_run(name: str) -> None:
    arm = ARMS[name]
    assert arm.pairs is None or arm.pairs in PAIR_SETS
    words = [*arm.words, *(["--data.offline.path", "pairs"] if arm.pairs else [])]
    load_config(ROOT / "cluster" / "configs" / f"shapes_{arm.preset}.toml", words)


@pytest.mark.parametrize("name", [name for name, made in PAIR_SETS.items() if made.words[0] == "bdhs"])
def test_every_pair_set_is_a_valid_job(name: str, tmp_path: Path) -> None:
    words = [*PAIR_SETS[name].words, "--out", str(tmp_path)]
    job_of(*build_parser().parse_known_args(words))

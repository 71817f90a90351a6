"""The comparison's page, and that each of its arms is a configuration that exists."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from benchmarks import paper_table
from benchmarks.paper_arms import ARMS, PAIR_SETS
from benchmarks.paper_page import METRICS, cell, table, write_page
from cluster.generate import config_of
from common.config import RunConfig
from common.datasets import SPEC, write_json
from common.overrides import load_config
from common.paths import replace_file

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
def test_a_cell_is_mean_and_range(
    values: list[float], interval: list[float] | None, expected: str
) -> None:
    assert cell(values, interval) == expected


def test_the_page_has_one_row_per_method_and_its_plot(tmp_path: Path) -> None:
    write_page(result(), tmp_path)
    rows = [
        line
        for line in (tmp_path / "paper_table.md").read_text().splitlines()
        if line.startswith("|")
    ]
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


@pytest.mark.parametrize(
    "name", [name for name, made in PAIR_SETS.items() if made.words[0] == "bdhs"]
)
def test_every_pair_set_is_a_valid_job(name: str, tmp_path: Path) -> None:
    words = [*PAIR_SETS[name].words, "--out", str(tmp_path)]
    config_of(words)


@pytest.mark.parametrize(
    ("flag", "made", "asked"),
    [("steps", 20, 40), ("scenes", 200, 50), ("pairs", 600, 1000)],
)
def test_what_was_made_otherwise_is_refused_before_anything_runs(
    flag: str, made: int, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first seed is not there yet, the second is."""
    monkeypatch.setattr(paper_table, "call", lambda *_: pytest.fail("something ran"))
    settings = {
        "learner": {"num_steps": 20},
        "evaluation": {"suites": [{"kind": "shapes", "test_scenes": 200}]},
        "mixture": {"online_fraction": 1},
    }
    config = RunConfig.model_validate(settings)
    replace_file(
        tmp_path / "runs" / "offline-povid-seed1" / "config.json",
        config.model_dump_json(),
    )
    (tmp_path / "pairs" / "povid-seed1").mkdir(parents=True)
    write_json(tmp_path / "pairs" / "povid-seed1" / SPEC, {"count": 600})
    line = [
        "paper_table",
        "--dir",
        str(tmp_path),
        "--only",
        "offline-povid",
        "--seeds",
        "0",
        "1",
    ]
    monkeypatch.setattr("sys.argv", [*line, f"--{flag}", str(asked)])
    with pytest.raises(
        SystemExit, match=f"--{flag}: expected {made}, .*, got {asked}; .*--dir"
    ):
        paper_table.main()


def test_the_start_policy_s_answers_are_shared_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the file open reads the old one or the new one, never half of either."""
    settings = argparse.Namespace(dir=tmp_path, steps=1, scenes=2)
    first, second = (
        tmp_path / "runs" / f"online-seed{seed}" / "evaluation" / "baseline.json"
        for seed in (0, 1)
    )
    monkeypatch.setattr(paper_table, "oracle_scorecard", lambda run_dir: {})
    monkeypatch.setattr(paper_table, "call", lambda *_: replace_file(first, "answers"))
    assert paper_table.train("online", ARMS["online"], 0, settings)["seconds"] >= 0
    start = tmp_path / "start_2_scenes.json"
    assert start.read_text() == "answers"
    replace_file(second, "torn")
    os.link(second, tmp_path / "opened before")
    monkeypatch.setattr(paper_table, "call", lambda *_: None)
    paper_table.train("online", ARMS["online"], 1, settings)
    assert (
        second.read_text() == "answers"
        and (tmp_path / "opened before").read_text() == "torn"
    )

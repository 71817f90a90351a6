"""The comparison's page, and that each of its arms is a configuration that exists."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from benchmarks import paper_table
from benchmarks.paper_arms import ARMS, PAIR_SETS, WORLDS, arms_of
from benchmarks.paper_page import cell, table, write_page
from cluster.generate import config_of
from common.config import RunConfig
from common.config.overrides import load_config
from common.data.datasets import SPEC, write_json
from common.paths import replace_file

METRICS = WORLDS["shapes"].metrics
ROOT = Path(__file__).parents[2]


def result() -> dict[str, object]:
    """What the benchmark would write: one method, three seeds."""
    verdicts = [{"chair_i": "better"}, {"chair_i": ""}, {"chair_i": "worse"}]
    seeds = [card(0.1), card(0.2), card(0.3)]
    arm = {"title": "Mixed | DPO", "seeds": seeds, "verdicts": verdicts}
    intervals = {name: [0.2, 0.3] for name, _ in METRICS}
    return {
        "world": "shapes",
        "baseline": {**card(0.25), "intervals": intervals},
        "arms": {"mixed": arm},
        "not_run": ["RLOO"],
        "seeds": [0, 1, 2],
        "steps": 4,
        "pairs": 6,
        "scenes": 5,
    }


def card(value: float) -> dict[str, float]:
    """Every metric has the same value; lengths are twenty times as much."""
    metrics = {name: value for name, _ in METRICS}
    metrics["mean_length"] = 20 * value
    return metrics


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
    page = (tmp_path / "paper_table.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    figure = "0.200 (0.100 – 0.300)"
    assert rows[3].startswith(f"| Mixed / DPO | {figure} | {figure} +- |")
    num_bars = {row.count("|") for row in rows}
    assert len(num_bars) == 1
    assert (tmp_path / "paper_table.svg").read_text().count("<svg") == 1
    assert "seeds 0, 1, 2" in table(result())
    assert "Not run here: RLOO." in table(result())


ROWS = [(world, name) for world in WORLDS for name in arms_of(world)]


@pytest.mark.parametrize(("world", "name"), ROWS)
def test_every_arm_is_a_valid_run(world: str, name: str) -> None:
    arm = ARMS[name]
    assert arm.pairs is None or arm.pairs in PAIR_SETS
    words = arm.words_in(WORLDS[world])
    if arm.pairs:
        words += ["--data.offline.path", "pairs"]
    load_config(ROOT / paper_table.preset_of(arm, world), words)


GENERATED = [name for name, pairs in PAIR_SETS.items() if pairs.source is None]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", GENERATED)
def test_every_pair_set_is_a_valid_job(name: str, world: str, tmp_path: Path) -> None:
    words = PAIR_SETS[name].words_in(WORLDS[world])
    config_of([*words, "--out", str(tmp_path)])


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
    run_dir = tmp_path / "runs" / "offline-povid-seed1"
    replace_file(run_dir / "config.json", config.model_dump_json())
    pairs_dir = tmp_path / "pairs" / "povid-seed1"
    pairs_dir.mkdir(parents=True)
    write_json(pairs_dir / SPEC, {"count": 600})
    line = ["paper_table", "--dir", str(tmp_path)]
    line += ["--only", "offline-povid"]
    line += ["--seeds", "0", "1"]
    line += [f"--{flag}", str(asked)]
    monkeypatch.setattr("sys.argv", line)
    message = f"--{flag}: expected {made}, .*, got {asked}; .*--dir"
    with pytest.raises(SystemExit, match=message):
        paper_table.main()


def test_the_start_policy_s_answers_are_shared_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the file open reads the old one or the new one, never half of either."""
    settings = argparse.Namespace(dir=tmp_path, world="shapes", steps=1, scenes=2)
    runs = tmp_path / "runs"
    first = runs / "online-seed0" / "evaluation" / "baseline.json"
    second = runs / "online-seed1" / "evaluation" / "baseline.json"
    monkeypatch.setattr(paper_table, "oracle_scorecard", lambda run_dir: {})
    monkeypatch.setattr(paper_table, "call", lambda *_: replace_file(first, "answers"))
    outcome = paper_table.train("online", ARMS["online"], 0, settings)
    assert outcome["seconds"] >= 0
    start = tmp_path / "start_2_scenes.json"
    assert start.read_text() == "answers"
    replace_file(second, "torn")
    opened_before = tmp_path / "opened before"
    os.link(second, opened_before)
    monkeypatch.setattr(paper_table, "call", lambda *_: None)
    paper_table.train("online", ARMS["online"], 1, settings)
    assert second.read_text() == "answers"
    assert opened_before.read_text() == "torn"

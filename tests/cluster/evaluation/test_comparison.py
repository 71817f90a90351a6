"""Runs side by side: the right columns, what differs, curves of the whole history, nothing injected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster import report
from cluster.evaluation.comparison import (
    compared_cards,
    config_differences,
    labels_of,
    write_comparison,
)
from cluster.evaluation.finished_run import FinishedRun, read_run
from common.errors import UserError
from common.evaluation import Metric
from reward.suites.scorecard import Scorecard, SuiteCard


def card(value: float) -> Scorecard:
    metric = Metric(value, (value - 0.1, value + 0.1), "CHAIR_i", "lower", "made up")
    return Scorecard(suites={"own": SuiteCard(metrics={"chair_i": metric})})


def finished(
    folder: Path, final: float, config: dict[str, Any], start: float = 0.5
) -> FinishedRun:
    """A run directory with two steps, of which a resume repeated the second."""
    cards = {"baseline": card(start), "final": card(final)}
    folder.mkdir(parents=True)
    report.write_scorecards(folder / "scorecard.json", cards)
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    journal = folder / "journal" / "events.jsonl"
    journal.parent.mkdir()
    events = [
        {"event": "checkpoint", "step": 2, "score": 0.8},
        {"event": "checkpoint", "step": 2, "score": 0.9},
        {"event": "checkpoint", "step": 4, "score": None},
    ]
    journal.write_text("".join(json.dumps(event) + "\n" for event in events))
    return read_run(folder)


def test_equal_starts_are_one_column(tmp_path: Path) -> None:
    first = finished(tmp_path / "a", 0.1, {})
    second = finished(tmp_path / "b", 0.2, {})
    assert list(compared_cards([first, second])) == ["start", "A a", "B b"]


def test_different_starts_stand_apart(tmp_path: Path) -> None:
    first = finished(tmp_path / "x" / "run", 0.1, {})
    second = finished(tmp_path / "y" / "run", 0.2, {}, start=0.4)
    cards = compared_cards([first, second])
    assert list(cards) == ["A run start", "B run start", "A run", "B run"]


def test_differences_reach_into_sections_and_lists(tmp_path: Path) -> None:
    ours = {"run": {"dir": "a", "seed": 0}, "suites": [{"n": 1}], "loss": "ipo"}
    theirs = {"run": {"dir": "b", "seed": 0}, "suites": [{"n": 2}], "beta": 1}
    first = finished(tmp_path / "a", 0.1, ours)
    second = finished(tmp_path / "b", 0.1, theirs)
    assert config_differences([first, second]) == {
        "suites.0.n": ["1", "2"],
        "loss": ["ipo", "–"],
        "beta": ["–", "1"],
    }


def test_a_repeated_step_counts_once(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", 0.1, {})
    assert run.validation() == [(2, 0.9)]
    assert run.curve("loss") == [(1, 0.7), (2, 0.6)]
    assert run.curve("not/there") == []


def test_the_page_shows_values_and_escapes_names(tmp_path: Path) -> None:
    first = finished(tmp_path / "a", 0.1, {"note": "<script>alert(1)</script>"})
    second = finished(tmp_path / "[b]$x$<i>", 0.25, {"note": "plain"})
    write_comparison(tmp_path / "out" / "page.html", [first, second])
    page = (tmp_path / "out" / "page.html").read_text()
    assert "<td>0.250<small>0.150 – 0.350</small></td>" in page
    assert "<script>" not in page
    assert "B [b]$x$&lt;i&gt;" in page
    # The curves of validation and loss.
    assert page.count("<figure>") == 2


def test_the_command_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("[a]", 0.1), ("b", 0.2)):
        finished(tmp_path / name, value, {"run": {"seed": value}})
    page = tmp_path / "page.html"
    folders = [str(tmp_path / name) for name in ("[a]", "b")]
    assert report.main([*folders, "--out", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "A [a]" in printed
    assert "run.seed" in printed
    assert page.exists()


def test_an_unfinished_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path / "a", 0.1, {})
    (tmp_path / "b").mkdir()
    assert report.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert f"{tmp_path / 'b' / 'scorecard.json'}: expected" in capsys.readouterr().err


def test_more_runs_than_letters_are_refused(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", 0.1, {})
    with pytest.raises(UserError, match="at most 12 runs, got 13"):
        labels_of([run] * 13)

"""Pairs that were accepted and discarded later, and groups that became several pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.report import main
from cluster.run_page.run import RunPage
from tests.cluster.run_page.written_runs import BEGAN, data_of, write_run

STALE = "too_stale"


def group(number: int, *margins: float) -> dict[str, Any]:
    """A group of RLOO that became a pair of each margin."""
    texts = [f"answer {number}.{at}" for at in range(2 * len(margins))]
    scores: list[float] = []
    for margin in margins:
        scores += [margin, 0.0]
    pairs = {f"{number}/{at}": [margin, 0.0] for at, margin in enumerate(margins)}
    return {
        "event": "group",
        "time": BEGAN,
        "id": str(number),
        "source": "rloo",
        "prompt": "prompt/0",
        "images": [],
        "completions": texts,
        "weight_versions": [0] * len(texts),
        "verdict": scores,
        "notes": [],
        "chosen": list(range(0, len(texts), 2)),
        "rejected": list(range(1, len(texts), 2)),
        "outcome": "pair",
        "pairs": pairs,
    }


def step(number: int, *pairs: str) -> dict[str, Any]:
    event = {"event": "step", "time": BEGAN, "step": number, "version": 0}
    return {**event, "pairs": list(pairs), "online": len(pairs)}


def discard(pair_id: str) -> dict[str, Any]:
    return {"event": "discard", "time": BEGAN, "id": pair_id, "reason": STALE}


def page_of(run_dir: Path, events: Sequence[dict[str, Any]]) -> RunPage:
    write_run(run_dir, 8)
    started = {"event": "start", "time": BEGAN, "workers": []}
    lines = [json.dumps(event) for event in (started, *events)]
    (run_dir / "journal" / "events.jsonl").write_text("\n".join(lines) + "\n")
    page = RunPage(run_dir)
    page.store.read_all()
    return page


SEVEN_STEPS = [group(1, 1.0, 3.0), *[step(number) for number in range(1, 8)]]
"""Two pairs are accepted before the first step; nothing of them is trained."""


def shown(page: RunPage, **words: str) -> list[str]:
    return [item["id"] for item in page.view("pairs", words)["items"]]


def drops(page: RunPage) -> list[int]:
    (series,) = page.view("drops", {})["series"]
    values: list[int] = series["values"]
    return values


def test_a_discarded_pair_is_dropped_at_the_step_of_its_discard(tmp_path: Path) -> None:
    with page_of(tmp_path / "run", [*SEVEN_STEPS, discard("1/0")]) as page:
        assert drops(page) == [0] * 7 + [1]
        assert shown(page, what="dropped", step_from="8", step_to="8") == ["1/0"]
        assert shown(page, what="dropped", step_to="7") == []
        (item,) = page.view("pairs", {"what": "dropped"})["items"]
        assert (item["settled"], item["discarded"]) == (1, 8)
        # The other one still waits.
        assert shown(page, what="waiting", step_from="1", step_to="1") == ["1/1"]


def test_the_page_on_disk_filters_by_that_step(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with page_of(run_dir, [*SEVEN_STEPS, discard("1/0")]):
        assert main([str(run_dir), "--page"]) == 0
    rows = data_of(run_dir / "report", "pairs")["rows"]
    assert sorted((reason, step) for _, reason, step, *_ in rows) == [
        ("", 1),
        (STALE, 8),
    ]


def test_what_a_resume_forgets_waits_again(tmp_path: Path) -> None:
    saving = {"event": "saving", "time": BEGAN, "step": 3}
    resume = {"event": "resume", "time": BEGAN, "step": 3}
    events = [*SEVEN_STEPS[:4], saving, *SEVEN_STEPS[4:], discard("1/0"), resume]
    with page_of(tmp_path / "run", events) as page:
        assert shown(page, what="dropped") == []
        (_, item) = page.view("pairs", {"what": "waiting"})["items"]
        assert (item["id"], item["settled"], item["discarded"]) == ("1/0", 1, None)
        assert page.view("drops", {})["series"] == []


def test_margins_are_of_every_pair_and_scores_of_every_group(tmp_path: Path) -> None:
    """Margins 1, 3 and 5, 7; the mean scores of the groups are 4 / 4 and 12 / 4.

    That a pair is discarded later does not change what the judge said.
    """
    events = [group(1, 1.0, 3.0), group(2, 5.0, 7.0), discard("2/0"), step(1, "1/0")]
    with page_of(tmp_path / "run", events) as page:
        charts = {chart["title"]: chart for chart in page.view("charts", {})["charts"]}
    (margins,) = charts["The judge's margins"]["series"]
    (scores,) = charts["The judge's scores"]["series"]
    assert (margins["steps"], margins["values"]) == ([1], [pytest.approx(4.0)])
    assert (scores["steps"], scores["values"]) == ([1], [pytest.approx(2.0)])

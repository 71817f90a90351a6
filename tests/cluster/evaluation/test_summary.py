"""The sentence that says what a run came to: values by hand, in the terminal and on the run page alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.evaluation.finished_run import read_run
from cluster.evaluation.summary import summary
from cluster.report import write_scorecards
from cluster.run_page.run import RunPage
from common.evaluation import Metric
from reward.suites.changes import Change
from reward.suites.scorecard import Scorecard, SuiteCard
from tests.cluster.run_page.written_runs import write_run

BETTER = "the policy is better by CHAIR_i 0.240 → 0.009"


def card(value: float, verdict: str = "") -> Scorecard:
    metric = Metric(value, (value - 0.01, value + 0.01), "CHAIR_i", "lower", "made up")
    changes: dict[str, Change] = {}
    if verdict:
        change = {"value": value - 0.24, "interval": (-1.0, -0.1), "verdict": verdict}
        changes["chair_i"] = Change.model_validate(change)
    suite = SuiteCard(metrics={"chair_i": metric}, changes=changes)
    return Scorecard(suites={"shapes": suite})


def finished(
    folder: Path, lines: Sequence[Mapping[str, float]], picked: int | None
) -> Path:
    """A run of these lines of metrics whose policy is the checkpoint of a step."""
    run_dir = write_run(folder / "run")
    cards = {"baseline": card(0.24), "final": card(0.009, "better")}
    write_scorecards(run_dir / "scorecard.json", cards)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir / "metrics.jsonl").write_text(text)
    journal = run_dir / "journal" / "events.jsonl"
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    kept = [event for event in events if event["event"] != "picked"]
    time = events[-1]["time"]
    # An earlier end had picked another one.
    for step in (1, picked):
        if picked is not None:
            event = {"event": "picked", "time": time, "step": step, "by": "validation"}
            kept.append(event)
    journal.write_text("".join(json.dumps(event) + "\n" for event in kept))
    return run_dir


def test_it_is_of_the_picked_checkpoint(tmp_path: Path) -> None:
    """Steps 1 to 4 of 10 trained 4 + 5 + 6 + 7 = 22 pairs. No metric but this one is there: all pairs are offline."""
    lines = [{"step": step, "pairs/trained": step + 3.0} for step in range(1, 11)]
    run_dir = finished(tmp_path, lines, picked=4)
    sentence = f"After 4 of 10 steps on 22 pairs, which validation picked, {BETTER}."
    assert told(run_dir) == [sentence, sentence]


def test_of_the_last_checkpoint_nothing_has_to_be_said(tmp_path: Path) -> None:
    """A step whose batch was refused whole has no metric."""
    lines: list[Mapping[str, float]] = [{"step": 1}]
    lines += [{"step": step, "pairs/trained": 4.0} for step in (2, 3)]
    sentence = f"After 3 steps on 8 pairs {BETTER}."
    for picked in (3, None):
        run_dir = finished(tmp_path / str(picked), lines, picked)
        assert told(run_dir) == [sentence, sentence]


def test_a_run_that_goes_on_has_come_to_nothing_yet(tmp_path: Path) -> None:
    with RunPage(write_run(tmp_path / "run")) as page:
        page.store.read_all()
        assert page.view("scores", {})["changed"] == ""


def told(run_dir: Path) -> list[str]:
    """The sentence as the terminal and as the run page has it."""
    terminal, _, look = summary(read_run(run_dir)).partition("\n")
    assert f"python -m cluster.report {run_dir} --serve" in look
    with RunPage(run_dir) as page:
        page.store.read_all()
        return [terminal, page.view("scores", {})["changed"]]

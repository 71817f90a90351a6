"""The other views: times, scores, throughput, and the config against the defaults or another run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.evaluation.finished_run import read_run
from cluster.evaluation.summary import summary
from cluster.run_page.metrics import RunMetrics, charts
from cluster.run_page.run import RunPage
from cluster.run_page.settings import settings
from common.config.overrides import load_config
from tests.cluster.run_page.written_runs import BEGAN, write_run
from tests.cluster.runs import make_config, run


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunPage]:
    with RunPage(write_run(tmp_path_factory.mktemp("runs") / "run")) as run_page:
        run_page.store.read_all()
        yield run_page


def test_the_timeline_has_a_lane_for_each_worker(page: RunPage) -> None:
    """Of every second the engine works 0.5, the judge 0.25, the learner 0.1 of every fourth."""
    view = page.view("timeline", {"begin": str(BEGAN), "end": str(BEGAN + 20)})
    lanes = {lane["who"]: lane for lane in view["lanes"]}
    assert list(lanes) == ["rollout/0", "reward/0", "learner"]
    idle = {who: round(lane["idle_frac"], 3) for who, lane in lanes.items()}
    assert idle == {"rollout/0": 0.5, "reward/0": 0.75, "learner": 0.975}


def test_pauses_that_nobody_can_see_are_not_drawn(page: RunPage) -> None:
    """In a view of 4,000 s a pause of 0.5 s is less than a pixel."""
    words = {"begin": str(BEGAN - 2000), "end": str(BEGAN + 2000)}
    (lane, *_) = page.view("timeline", words)["lanes"]
    ((kind, _, _, calls),) = lane["stretches"]
    assert (kind, calls) == ("sample", 40)


def test_throughput_and_waste(page: RunPage) -> None:
    """A step of 4 pairs every 4 s; 10 of 50 groups were ties."""
    head = page.view("overview", {})
    assert (head["step"], head["num_steps"], head["state"]) == (10, 10, "ended")
    assert head["pairs_per_s"] == 1.0
    assert head["last_step"] == [["trained", 3.0], ["waited for pairs", 1.0]]
    flow = page.view("flow", {})
    assert flow["groups"] == [["became pairs", 40, 0.8], ["tie", 10, 0.2]]
    assert ["trained, online", 40, 1.0] in flow["pairs"]


def test_drops_over_the_steps(page: RunPage) -> None:
    """The tie beside pair 3, 7, … comes before the step that trains that pair."""
    view = page.view("drops", {})
    (series,) = view["series"]
    assert (series["name"], series["total"]) == ("tie", 10)
    assert series["values"] == [1] * 10


def test_rows_that_were_refused_at_the_start_are_drops(tmp_path: Path) -> None:
    """Those of the newest start: the files may have been repaired since."""
    run_dir = write_run(tmp_path / "run")
    first = {"event": "data", "time": BEGAN, "dropped": {"no_image": 9}}
    newest = {
        "event": "data",
        "time": BEGAN,
        "dropped": {"no_image": 2, "too_long": 3},
        "examples": {"no_image": "row 4: there is no a.png"},
    }
    journal = run_dir / "journal" / "events.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(map(json.dumps, (first, newest))) + "\n")
    with journal.open("a") as file:
        file.write("\n".join(lines[1:]) + "\n")
    with RunPage(run_dir) as run_page:
        run_page.store.read_all()
        rows = run_page.view("drops", {})["rows"]
    assert rows == [["too_long", 3, ""], ["no_image", 2, "row 4: there is no a.png"]]


def test_the_judge_by_source(page: RunPage) -> None:
    """Pair n has scores 1 and -n / 10, so margin 1 + n / 10; the first step has pairs 0 and 2 of rloo."""
    charts = {chart["title"]: chart for chart in page.view("charts", {})["charts"]}
    series = {one["name"]: one for one in charts["The judge's margins"]["series"]}
    assert series["rloo"]["values"][0] == pytest.approx(1.1)
    assert series["online"]["values"][0] == pytest.approx(1.2)


def test_scores_of_a_whole_run_with_intervals(tmp_path: Path) -> None:
    _, run_dir = run(make_config(tmp_path))
    with RunPage(run_dir) as run_page:
        run_page.store.read_all()
        scores = run_page.view("scores", {})
    assert scores["policies"] == ["before", "after"]
    (suite,) = scores["suites"]
    assert suite["name"] == "shapes" and suite["rows"]
    (validation,) = scores["validations"]
    assert [step for step, _ in validation["rows"]] == [4, 8]
    place = validation["metrics"].index("chair_i")
    for _, cells in validation["rows"]:
        value, low, high = cells[place]
        assert low <= value <= high
    said = summary(read_run(run_dir))
    # All scores are equal, so that the first checkpoint is the best.
    assert scores["picked"] == 4
    assert scores["changed"].startswith("After 4 of 8 steps")
    assert said.startswith(scores["changed"] + "\n") and said.count("\n") == 1
    assert f"python -m cluster.report {run_dir} --serve" in said


def test_settings_are_compared_with_the_defaults_of_their_kinds() -> None:
    words = [
        "--mixture.online_fraction=1",
        "--reward.judge.kind=answer",
        "--learner.optimizer.lr=3e-5",
        "--model.tuning.kind=lora",
        "--model.tuning.r=32",
        "--rollout.temperature=1",
    ]
    config = json.loads(load_config(None, words).model_dump_json())
    differing = {row[0]: row[1:3] for row in settings(config)["rows"] if row[3]}
    # A default of the kind that was chosen is no difference, a number is the same however it is written.
    assert differing == {
        "mixture.online_fraction": ["1", "0.5"],
        "reward.judge.kind": ["answer", "rules"],
        "learner.optimizer.lr": ["3e-05", "1e-06"],
        "model.tuning.kind": ["lora", "full"],
        "model.tuning.r": ["32", "128"],
    }


def test_settings_are_compared_with_another_run() -> None:
    here = {"run": {"dir": "a", "seed": 1}, "old": True}
    there = {"run": {"dir": "b", "seed": 2}, "new": [1]}
    compared = settings(here, there, "b")
    assert compared["against"] == "b"
    assert [row for row in compared["rows"] if row[3]] == [
        ["run.seed", "1", "2", True],
        ["old", "True", "–", True],
        ["new.0", "–", "1", True],
    ]


def test_a_view_is_of_one_moment_while_others_read_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the curves are drawn the run writes a step, and the head of the page is asked for."""
    run_dir = write_run(tmp_path / "run")
    asked: list[threading.Thread] = []
    num_steps: list[int] = []

    def drawn_slowly(metrics: RunMetrics) -> dict[str, Any]:
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 11, "new": 1.0}) + "\n")
        head = threading.Thread(target=run_page.view, args=("overview", {}))
        asked.append(head)
        num_steps.append(len(metrics.steps))
        head.start()
        # It has to wait; without a lock it would have read the line long ago.
        head.join(0.5)
        num_steps.append(len(metrics.steps))
        return charts(metrics)

    monkeypatch.setattr("cluster.run_page.run.charts", drawn_slowly)
    with RunPage(run_dir) as run_page:
        assert run_page.view("charts", {})["num_steps"] == 10
        asked[0].join()
        assert num_steps == [10, 10]
        monkeypatch.undo()
        assert run_page.view("charts", {})["num_steps"] == 11

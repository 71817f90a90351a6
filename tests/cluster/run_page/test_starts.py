"""Runs that were started more than once: nothing of one start is counted for another."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.run_page.run import RunPage
from tests.cluster.run_page.written_runs import BEGAN, work_event, write_run

HOUR = 3600.0


def data(at: float) -> dict[str, Any]:
    return {"event": "data", "time": at, "prompts": 9, "offline": 0, "dropped": {}}


def start(at: float) -> dict[str, Any]:
    return {"event": "start", "time": at, "workers": []}


def saving(at: float, step: int) -> dict[str, Any]:
    return {"event": "saving", "time": at, "step": step}


def resume(at: float, step: int) -> dict[str, Any]:
    return {"event": "resume", "time": at, "step": step}


def step(at: float, number: int) -> dict[str, Any]:
    event = {"event": "step", "time": at, "step": number, "version": number - 1}
    return {**event, "pairs": [f"offline/{number}"], "online": 0}


def trained(begin: float, first: int, last: int) -> list[dict[str, Any]]:
    """A step every 10 s, of which the learner trains 5 and the engine samples 2."""
    events: list[dict[str, Any]] = []
    for number in range(first, last + 1):
        end = begin + 10 * (number - first + 1)
        events.append(work_event("rollout/0", "sample", end - 8, 2))
        events.append(work_event("learner", "train", end, 5))
        events.append(step(end, number))
    return events


def page_of(run_dir: Path, events: Iterable[dict[str, Any]]) -> RunPage:
    write_run(run_dir, 40)
    lines = [json.dumps(event) for event in events]
    (run_dir / "journal" / "events.jsonl").write_text("\n".join(lines) + "\n")
    page = RunPage(run_dir)
    page.store.read_all()
    return page


def resumed(begin: float) -> list[dict[str, Any]]:
    """Steps 1 to 4, a checkpoint behind step 2; an hour later 3 and 4 again, and 5."""
    again = begin + HOUR
    return [
        data(begin),
        start(begin),
        *trained(begin, 1, 2),
        saving(begin + 20, 2),
        *trained(begin + 20, 3, 4),
        data(again - 30),
        work_event("learner", "start", again, 30),
        start(again),
        resume(again, 2),
        *trained(again, 3, 5),
    ]


def test_nobody_is_idle_between_two_starts(tmp_path: Path) -> None:
    """First to last call: 20 s of the first start, 30 s of the second.

    The learner trains 2 x 5 s and 3 x 5 s of 20 + 30 s, which begin with the engine's first call.
    """
    with page_of(tmp_path / "run", resumed(BEGAN)) as page:
        words = {"begin": str(BEGAN), "end": str(BEGAN + 2 * HOUR)}
        lanes = {lane["who"]: lane for lane in page.view("timeline", words)["lanes"]}
        shares = page.view("flow", {})["idle"]
    assert lanes["learner"]["idle_frac"] == pytest.approx(1 - 25 / 50)
    assert lanes["rollout/0"]["idle_frac"] == pytest.approx(1 - 10 / 50)
    # As a whole the training begins with the learner's first call, 5 s later.
    assert shares["learner"] == pytest.approx(1 - 25 / 45)


def test_work_that_a_resume_began_again_is_drawn_no_more(tmp_path: Path) -> None:
    with page_of(tmp_path / "run", resumed(BEGAN)) as page:
        work = page.store.work
        lanes = page.view("timeline", {})["lanes"]
    assert sum(call[1] == "train" for call in work) == 5
    (learner,) = [lane for lane in lanes if lane["who"] == "learner"]
    calls = {kind: 0 for kind, *_ in learner["stretches"]}
    for kind, _, _, count in learner["stretches"]:
        calls[kind] += count
    # Loading the models of the second start is work of the second start.
    assert calls == {"train": 5, "start": 1}


def test_a_start_from_the_beginning_leaves_no_work_of_the_one_before(
    tmp_path: Path,
) -> None:
    again = BEGAN + HOUR
    events = [data(BEGAN), start(BEGAN), *trained(BEGAN, 1, 3)]
    events += [data(again), start(again), *trained(again, 1, 2)]
    with page_of(tmp_path / "run", events) as page:
        assert [call[3] for call in page.store.work if call[1] == "train"] == [
            again + 10,
            again + 20,
        ]


def test_a_learner_that_is_lost_costs_what_it_did_since_the_checkpoint(
    tmp_path: Path,
) -> None:
    """No new start: steps 3 and 4 are done again 100 s later, and the pause is nobody's idle time."""
    events = [data(BEGAN), start(BEGAN), *trained(BEGAN, 1, 2), saving(BEGAN + 20, 2)]
    events += trained(BEGAN + 20, 3, 4)
    events += [resume(BEGAN + 100, 2), *trained(BEGAN + 100, 3, 4)]
    with page_of(tmp_path / "run", events) as page:
        shares = page.view("flow", {})["idle"]
        assert sum(call[1] == "train" for call in page.store.work) == 4
    assert shares["learner"] == pytest.approx(1 - 20 / 35)


def test_rates_are_of_the_newest_start(tmp_path: Path, at_time: Any) -> None:
    """A pair every 10 s; 5 of 10 steps are left."""
    at_time(BEGAN + HOUR + 31)
    with page_of(tmp_path / "run", resumed(BEGAN)) as page:
        head = page.view("overview", {})
    assert head["state"] == "running"
    assert head["pairs_per_s"] == pytest.approx(0.1)
    assert head["left_s"] == pytest.approx(50)


def test_a_start_without_two_steps_has_no_rate_yet(
    tmp_path: Path, at_time: Any
) -> None:
    at_time(BEGAN + HOUR + 11)
    with page_of(tmp_path / "run", resumed(BEGAN)[:-6]) as page:
        head = page.view("overview", {})
    assert (head["step"], head["pairs_per_s"], head["left_s"]) == (3, None, None)


def test_a_run_that_goes_on_after_its_end_is_running(
    tmp_path: Path, at_time: Any
) -> None:
    """More steps were asked of a run that had picked its checkpoint and said nothing at its end."""
    at_time(BEGAN + HOUR + 31)
    events = resumed(BEGAN)
    first, second = events[:15], events[15:]
    picked = {"event": "picked", "time": BEGAN + 60, "step": 4, "by": "last"}
    with page_of(tmp_path / "run", [*first, picked, *second]) as page:
        assert page.view("overview", {})["state"] == "running"
        assert page.view("scores", {})["picked"] is None
    with page_of(tmp_path / "ended", [*first, picked]) as page:
        assert page.view("overview", {})["state"] == "ended"
        assert page.view("scores", {})["picked"] == 4


@pytest.fixture
def at_time(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the clock of the page."""

    def set_clock(now: float) -> None:
        clock = SimpleNamespace(time=lambda: now)
        monkeypatch.setattr("cluster.run_page.overview.time", clock)

    return set_clock

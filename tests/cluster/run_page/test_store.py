"""The index of a journal: what it counts, what a resume takes out of it, and journals that are cut or odd."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.run.auditing import audit
from cluster.run_page.metrics import RunMetrics, charts, evenly
from cluster.run_page.store import RunStore
from tests.cluster.run_page.written_runs import write_run
from tests.cluster.runs import STEPS, killed_at, make_config, run

COUNT = "select count(*) from items where reason = '' and step is not null"


def read(run_dir: Path) -> RunStore:
    store = RunStore(run_dir)
    store.read_all()
    return store


def test_it_agrees_with_the_audit_of_a_run_that_was_killed_and_resumed(
    tmp_path: Path,
) -> None:
    """The account and the page read one journal by code of their own."""
    config = make_config(tmp_path)
    try:
        run(config, learner=killed_at(STEPS - 1))
    except Exception as error:
        assert "killed" in str(error)
    _, run_dir = run(config, resume=True)
    account = audit(run_dir)
    assert not account.faults
    store = read(run_dir)
    assert store.ask(COUNT) == [(account.num_trained_online,)]
    waiting = "select count(*) from items where reason = '' and step is null"
    assert store.ask(waiting) == [(account.num_waiting,)]
    reasons = "select reason, count(*) from items where reason != '' group by reason"
    assert dict(store.ask(reasons)) == dict(account.drops)
    steps = [event["step"] for event in store.events["step"]]
    assert steps == list(range(1, STEPS + 1))
    assert store.num_repeated == account.overwritten["group"]


def test_a_run_tells_who_worked_when(tmp_path: Path) -> None:
    _, run_dir = run(make_config(tmp_path))
    work = read(run_dir).work
    kinds = {(who, what) for who, what, *_ in work}
    expected = {
        ("rollout/0", "sample"),
        ("reward/0", "judge"),
        ("learner", "train"),
        ("learner", "save"),
        ("rollout/0", "load"),
    }
    assert expected <= kinds
    num_steps = sum(what == "train" for _, what, *_ in work)
    assert num_steps == STEPS
    for _, _, begin, end, _ in work:
        assert begin <= end


def test_what_follows_later_is_read_from_where_it_stopped(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    journal = run_dir / "journal" / "events.jsonl"
    content = journal.read_bytes()
    # In the middle of a line, as a writer leaves it.
    journal.write_bytes(content[: len(content) // 2])
    store = read(run_dir)
    first = store.ask("select count(*) from items")[0][0]
    assert 0 < first < 50
    with journal.open("ab") as file:
        file.write(content[len(content) // 2 :])
    store.read_all()
    assert store.ask("select count(*) from items") == [(50,)]
    assert store.ask(COUNT) == [(40,)]
    assert store.read_frac == 1


def test_another_journal_in_its_place_begins_again(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    store = read(run_dir)
    other = write_run(tmp_path / "other", num_pairs=8)
    (other / "journal" / "events.jsonl").rename(run_dir / "journal" / "events.jsonl")
    store.read_all()
    assert store.ask(COUNT) == [(8,)]


def test_lines_of_no_version_are_passed_over(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    journal = run_dir / "journal" / "events.jsonl"
    odd = [
        "{",
        "[1]",
        '{"event": "group"}',
        '{"no": 1}',
        '{"event": "work", "time": "x"}',
    ]
    with journal.open("a") as file:
        file.write("\n".join(odd) + "\n")
    store = read(run_dir)
    assert store.ask(COUNT) == [(40,)]


def test_metrics_follow_a_resume_that_cut_them(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    metrics = RunMetrics(run_dir)
    metrics.update()
    assert metrics.steps == list(range(1, 11))
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.unlink()
    again = json.dumps({"step": 4, "loss": float("nan"), "new": 5})
    path.write_text("".join(lines[:3]) + again + "\n")
    metrics.update()
    assert metrics.steps == [1, 2, 3, 4]
    # JSON has no NaN: the page leaves a gap.
    assert metrics.columns["loss"][-1] is None
    assert metrics.columns["new"] == [None, None, None, 5.0]


def test_every_metric_is_drawn_somewhere(tmp_path: Path) -> None:
    metrics = RunMetrics(write_run(tmp_path / "run"))
    metrics.update()
    drawn: set[str] = set()
    for chart in charts(metrics)["charts"]:
        drawn.update(series["name"] for series in chart["series"])
    assert drawn == {name for name in metrics.columns if "dropped" not in name}


def test_points_are_spread_evenly_and_end_with_the_last() -> None:
    assert evenly(3, 5) == [0, 1, 2]
    assert evenly(9, 5) == [0, 2, 4, 6, 8]

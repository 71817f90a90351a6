"""The audit of a run: right for runs that were killed and resumed, and every kind of fault is seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster import audit as command
from cluster.run.auditing import audit
from tests.cluster.runs import STEPS, killed_at, make_config, offline_set, run

Line = dict[str, Any]


@pytest.fixture(scope="module")
def resumed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixed run that was killed in step 7 and resumed from the checkpoint of step 4."""
    tmp_path = tmp_path_factory.mktemp("resumed")
    config = make_config(
        tmp_path,
        mixture__online_fraction=0.5,
        mixture__kind="ratio",
        data__offline__path=offline_set(tmp_path / "bdhs", "bdhs", 10),
        loop__max_staleness=2,
        checkpoint__keep=2,
    )
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(7))
    _, run_dir = run(config, resume=True)
    return run_dir


@pytest.fixture
def copied(resumed_run: Path, tmp_path: Path) -> Path:
    """Journal, checkpoints, pairs and metrics of that run, to be damaged."""
    shutil.copytree(resumed_run, tmp_path / "run")
    return tmp_path / "run"


def test_a_killed_and_resumed_run_adds_up(
    resumed_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(resumed_run)]) == 0
    assert "the account is right" in capsys.readouterr().out
    account = audit(resumed_run)
    assert account.num_starts == 2
    assert account.num_steps == STEPS
    # Half of the four pairs of a step are online.
    assert account.num_trained_online == account.num_trained_offline == STEPS * 2
    # Steps 5 and 6 were done twice.
    assert account.overwritten["step"] == 2
    assert account.checkpoints == [4, 8]


def test_a_run_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(3))
    _, run_dir = run(config, resume=True)
    account = audit(run_dir)
    assert account.faults == []
    assert account.overwritten["step"] == 2
    assert account.num_steps == STEPS


def test_a_run_killed_and_not_resumed_adds_up(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(7))
    account = audit(tmp_path / "run")
    assert account.faults == []
    assert account.num_steps == 6


def _lines(run_dir: Path) -> list[Line]:
    text = (run_dir / "journal" / "events.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def _first_after_resume(lines: list[Line], matches: Callable[[Line], bool]) -> Line:
    """The first such line of the history that led to the present weights."""
    start = [line["event"] for line in lines].index("resume")
    return next(line for line in lines[start:] if matches(line))


def _is_pair(line: Line) -> bool:
    return line["event"] == "group" and line["outcome"] == "pair"


def _is_step(line: Line) -> bool:
    return line["event"] == "step"


def _group_twice(lines: list[Line]) -> None:
    lines.append(_first_after_resume(lines, _is_pair))


def _group_lost(lines: list[Line]) -> None:
    """Its pair was trained, but no group became it."""
    step = _first_after_resume(lines, _is_step)
    trained = set(step["pairs"])
    group = next(line for line in lines if _is_pair(line) and line["id"] in trained)
    lines.remove(group)


def _pair_twice(lines: list[Line]) -> None:
    step = _first_after_resume(lines, _is_step)
    later = _first_after_resume(
        lines, lambda line: _is_step(line) and line["step"] > step["step"]
    )
    later["pairs"] = step["pairs"]


def _pair_forgotten(lines: list[Line]) -> None:
    """An online pair of a step is no longer said to be trained."""
    step = _first_after_resume(lines, _is_step)
    accepted = {line["id"] for line in lines if _is_pair(line)}
    online = next(pair for pair in step["pairs"] if pair in accepted)
    step["pairs"].remove(online)


def _trained_pair_discarded(lines: list[Line]) -> None:
    step = _first_after_resume(lines, _is_step)
    accepted = {line["id"] for line in lines if _is_pair(line)}
    online = next(pair for pair in step["pairs"] if pair in accepted)
    lines.append({"event": "discard", "id": online, "reason": "stale", "detail": ""})


def _step_missing(lines: list[Line]) -> None:
    lines.remove(_first_after_resume(lines, _is_step))


def _old_weights(lines: list[Line]) -> None:
    _first_after_resume(lines, _is_step)["version"] -= 1


def _strange_pair(lines: list[Line]) -> None:
    for line in lines:
        if _is_step(line):
            line["pairs"] = [f"unknown {line['step']} {i}" for i in range(4)]
            line["online"] = 0


def _unknown_resume(lines: list[Line]) -> None:
    _first_after_resume(lines, lambda line: line["event"] == "resume")["step"] = 3


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (_group_twice, "groups with more than one outcome"),
        (_group_lost, "accepted online pairs"),
        (_pair_twice, "online pairs trained twice"),
        (_pair_forgotten, "waiting pairs"),
        (_trained_pair_discarded, "pairs trained and discarded"),
        (_step_missing, "steps: expected 1 to 7"),
        (_old_weights, "the newest published"),
        (_strange_pair, "pairs that no group became"),
        (_unknown_resume, "whose checkpoint was never saved"),
    ],
)
def test_every_fault_of_a_journal_is_seen(
    copied: Path,
    damage: Callable[[list[Line]], None],
    fault: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = _lines(copied)
    damage(lines)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (copied / "journal" / "events.jsonl").write_text(text)
    assert command.main([str(copied)]) == 1
    assert fault in capsys.readouterr().out


def test_a_state_of_another_history_is_seen(copied: Path) -> None:
    state = copied / "checkpoints" / "step_000008" / "state.json"
    content = json.loads(state.read_text())
    content["drops"]["stale"] = 1000
    content["step"] = 9
    state.write_text(json.dumps(content))
    (step, drops) = audit(copied).faults
    assert "expected step 8, as the journal says, got 9" in step
    assert "1000" in drops


def test_a_torn_state_is_seen(copied: Path) -> None:
    state = copied / "checkpoints" / "step_000008" / "state.json"
    state.write_text(state.read_text()[:-10])
    (fault,) = audit(copied).faults
    assert "expected the state of a checkpoint" in fault


def test_a_lost_row_of_the_pairs_is_seen(copied: Path) -> None:
    path = copied / "pairs" / "step_000008.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    (fault,) = audit(copied).faults
    assert "(1 missing, 0 unknown)" in fault
    path.write_bytes(path.read_bytes()[:-20])
    (fault,) = audit(copied).faults
    assert "expected the pairs of this checkpoint" in fault


def test_a_kill_between_the_journal_and_the_pairs_is_no_fault(copied: Path) -> None:
    """`saving` is on disk before the pairs of its checkpoint; a resume does both again."""
    (copied / "pairs" / "step_000008.parquet").unlink()
    (fault,) = audit(copied).faults
    assert "step_000008.parquet: expected the pairs of this checkpoint" in fault
    shutil.rmtree(copied / "checkpoints" / "step_000008")
    account = audit(copied)
    assert account.faults == []
    assert account.checkpoints == [4]
    # Those of older ones were whole, and stay when their checkpoint goes.
    shutil.rmtree(copied / "checkpoints" / "step_000004")
    (copied / "pairs" / "step_000004.parquet").unlink()
    (fault,) = audit(copied).faults
    assert "step_000004.parquet: expected the pairs of this checkpoint" in fault


def test_a_lost_line_of_the_metrics_is_seen(copied: Path) -> None:
    path = copied / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[4:]))
    (fault,) = audit(copied).faults
    assert "expected a line for each of 8 steps, got 7" in fault


def test_a_folder_without_a_run_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(tmp_path)]) == 2
    assert "expected a run directory" in capsys.readouterr().err


def test_a_journal_of_another_version_is_bad_input(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _lines(copied)
    for line in lines:
        line.pop("online", None)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (copied / "journal" / "events.jsonl").write_text(text)
    assert command.main([str(copied)]) == 2
    assert "expected lines of this version" in capsys.readouterr().err


def test_the_account_as_json(
    resumed_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(resumed_run), "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert account["num_steps"] == STEPS
    assert account["faults"] == []

"""The audit of a run directory: its journal must add up, and agree with its checkpoints, its pairs and its metrics."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.run.history import History, read_history
from cluster.run.ledger import Ledger, Limits
from common.errors import UserError
from common.journal import read_events
from common.metrics import read_lines


@dataclass(frozen=True, slots=True)
class Audit:
    """What became of everything, and what does not add up.

    Attributes:
        num_trained_online: counts a pair as often as it was trained on.
        num_reused: how many of these were not the first time.
        overwritten: kind of event -> how many were done again after a resume.
        faults: one line for each; empty for a run whose account is right.
    """

    num_starts: int
    num_steps: int
    num_groups: int
    num_accepted: int
    num_trained_online: int
    num_trained_offline: int
    num_reused: int
    num_waiting: int
    drops: Mapping[str, int]
    overwritten: Mapping[str, int]
    checkpoints: Sequence[int]
    faults: Sequence[str]


def audit(run_dir: Path) -> Audit:
    """Read journal, checkpoints, pairs and metrics of a run, finished or not.

    Raises:
        UserError: there is no journal, or none of this version.
    """
    journal = run_dir / "journal" / "events.jsonl"
    if not journal.exists():
        raise UserError(
            f"{run_dir}: expected a run directory with {journal.relative_to(run_dir)}, got none; check the path"
        )
    try:
        history = read_history(read_events(journal))
        ledger, faults, checkpoints = _enter_all(history, run_dir)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{journal}: expected lines of this version of sightline, got one without {error}; audit it with the "
            "version that wrote it"
        ) from error
    faults = [*history.faults, *ledger.check(history.num_offline), *faults]
    faults += _metrics_faults(run_dir, ledger.steps)
    return _audit_of(
        history,
        ledger,
        checkpoints,
        faults,
    )


def _enter_all(
    history: History,
    run_dir: Path,
) -> tuple[Ledger, list[str], list[int]]:
    """The ledger of the whole history; the faults and the steps of the checkpoints that were compared on the way."""
    ledger = Ledger(_limits_of(run_dir))
    faults: list[str] = []
    compared: list[int] = []
    num_entered = 0
    newest = max(history.saved, default=0)
    for step, at in sorted(history.saved.items()):
        folder = run_dir / "checkpoints" / f"step_{step:06d}"
        if step == newest and not folder.exists():
            # A kill came while it was written, before or after its pairs were.
            break
        accepted_before = len(ledger.source_of)
        for event in history.events[num_entered:at]:
            ledger.enter(event)
        num_entered = at
        accepted = list(ledger.source_of)[accepted_before:]
        faults += _pair_file_faults(
            run_dir,
            step,
            accepted,
            history.rows,
        )
        state = folder / "state.json"
        # Older checkpoints are deleted.
        if state.exists():
            compared.append(step)
            faults += _state_faults(state, ledger)
    for event in history.events[num_entered:]:
        ledger.enter(event)
    return ledger, faults, compared


def _limits_of(run_dir: Path) -> Limits:
    """What the run's config allows; the default where its file is missing or torn."""
    try:
        config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
        return Limits.of(config)
    except (OSError, ValueError, AttributeError):
        return Limits()


def _audit_of(
    history: History, ledger: Ledger, checkpoints: Sequence[int], faults: Sequence[str]
) -> Audit:
    num_trained = ledger.trained.total()
    uses = [ledger.trained[pair_id] for pair_id in ledger.source_of]
    num_online = sum(uses)
    num_different = sum(count > 0 for count in uses)
    return Audit(
        num_starts=history.num_starts,
        num_steps=len(ledger.steps),
        num_groups=len(ledger.groups),
        num_accepted=len(ledger.source_of),
        num_trained_online=num_online,
        num_trained_offline=num_trained - num_online,
        num_reused=num_online - num_different,
        num_waiting=len(ledger.waiting),
        drops=dict(ledger.drops.most_common()),
        overwritten=history.overwritten,
        checkpoints=checkpoints,
        faults=faults,
    )


def _state_faults(
    path: Path,
    ledger: Ledger,
) -> list[str]:
    """Where a checkpoint's state differs from the account up to it."""
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        buffer = state["buffer"]
        # Earlier versions trained on no pair again.
        used = {use["pair"]["id"]: use["num_uses"] for use in buffer.get("used", ())}
        saved = {
            "step": state["step"],
            "version": state["version"],
            "accepted": _positive(state["accepted"]),
            "drops": _positive(state["drops"]),
            "waiting pairs": [pair["id"] for pair in buffer["online"]],
            "uses": used,
            "places of used pairs": _positive(buffer.get("reused", {})),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{path}: expected the state of a checkpoint, got {error!r}"]
    counted = {
        "step": len(ledger.steps),
        "version": ledger.version,
        "accepted": _positive(ledger.accepted),
        "drops": _positive(ledger.drops),
        "waiting pairs": ledger.waiting,
        "uses": {pair_id: ledger.trained[pair_id] for pair_id in used},
        "places of used pairs": _positive(ledger.reused),
    }
    faults = []
    for name, expected in counted.items():
        if saved[name] != expected:
            faults.append(
                f"{path}: expected {name} {_short(expected)}, as the journal says, got {_short(saved[name])}"
            )
    return faults


def _pair_file_faults(
    run_dir: Path, step: int, accepted: Sequence[str], rows: set[str]
) -> list[str]:
    """Where the pairs that were written with a checkpoint differ from those accepted since the one before."""
    import pyarrow.parquet as pq

    path = run_dir / "pairs" / f"step_{step:06d}.parquet"
    try:
        written = pq.read_table(path, columns=["id"])["id"].to_pylist()
    # pyarrow raises its own errors for a torn file; they are ValueErrors.
    except (OSError, ValueError) as error:
        return [f"{path}: expected the pairs of this checkpoint, got {error}"]
    # Those whose picture has gone are counted as rows that cannot be used.
    expected = [pair_id for pair_id in accepted if pair_id not in rows]
    if Counter(written) == Counter(expected):
        return []
    return [
        f"{path}: expected the {len(expected):,} pairs accepted since the checkpoint before, got {len(written):,} "
        f"({len(set(expected) - set(written)):,} missing, {len(set(written) - set(expected)):,} unknown)"
    ]


def _metrics_faults(
    run_dir: Path,
    steps: Sequence[int],
) -> list[str]:
    path = run_dir / "metrics.jsonl"
    lines = read_lines(path) if path.exists() else []
    measured = [int(line["step"]) for line in lines]
    # A step is in the journal before its metrics are written.
    if measured == list(steps) or measured == list(steps)[:-1]:
        return []
    return [
        f"{path}: expected a line for each of {len(steps)} steps, got {len(measured)}"
    ]


def _positive(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in sorted(counts.items()) if count}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "…"

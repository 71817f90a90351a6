"""What a finished run left behind: its config, its scorecards, its curves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cluster.harm.alert import Alert
from cluster.run.history import Event, read_history
from common.errors import UserError
from common.journal import read_events
from common.metrics import read_lines
from reward.suites.scorecard import Scorecard

SCORECARD = "the scorecard of a finished run"

ALERT_FIELDS = [field.name for field in fields(Alert)]

Points = Sequence[tuple[int, float]]
"""(learner step, value)."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """One run, as its directory tells it."""

    path: Path
    cards: Mapping[str, Scorecard]
    config: Mapping[str, Any]

    @property
    def start(self) -> Scorecard:
        """The start policy's scorecard."""
        return self.cards["baseline"]

    @property
    def final(self) -> Scorecard:
        """The picked policy's scorecard."""
        return self.cards["final"]

    def curve(self, metric: str) -> Points:
        """A metric of the learner's steps, [] when the run has none of this name."""
        points: list[tuple[int, float]] = []
        for line in self._lines():
            if metric in line:
                points.append((int(line["step"]), line[metric]))
        return points

    def steps(self) -> list[int]:
        """The learner's steps."""
        return [int(line["step"]) for line in self._lines()]

    def picked(self) -> int | None:
        """The step whose checkpoint became the policy; None where the journal does not say."""
        step: int | None = None
        for event in read_events(self.path / "journal" / "events.jsonl"):
            if event["event"] == "picked":
                step = event["step"]
        return step

    def _lines(self) -> Sequence[Mapping[str, float]]:
        path = self.path / "metrics.jsonl"
        return read_lines(path) if path.exists() else []

    def validation(self) -> Points:
        """The scores that picked the checkpoint; a step that a resume repeated counts once."""
        scores: dict[int, float] = {}
        for event in read_events(self.path / "journal" / "events.jsonl"):
            if event["event"] == "checkpoint" and event["score"] is not None:
                scores[event["step"]] = event["score"]
        return sorted(scores.items())

    def warnings(self) -> list[str]:
        """What the run said of harm while it trained, a line each; not what a resume has overwritten."""
        journal = self.path / "journal" / "events.jsonl"
        events = _of_warnings(read_events(journal))
        lines: list[str] = []
        for event in read_history(events).events:
            if event["event"] == "warning":
                alert = Alert(**{name: event[name] for name in ALERT_FIELDS})
                lines.append(alert.line)
        return lines


def _of_warnings(events: Iterable[Event]) -> Iterator[Event]:
    """Warnings, and what says which of them a resume, or a start from the beginning, has overwritten."""
    for event in events:
        if event["event"] in {"warning", "start", "resume", "saving", "unsaved"}:
            yield event
        elif event["event"] == "step":
            # That there was one: of a long run their pairs do not fit in memory.
            yield {"event": "step"}


def read_run(path: Path) -> FinishedRun:
    """Read a run directory.

    Raises:
        UserError: it holds no finished run.
    """
    scores = _read_object(path / "scorecard.json", SCORECARD)
    cards: dict[str, Scorecard] = {}
    for name in ("baseline", "final"):
        try:
            cards[name] = Scorecard.model_validate(scores[name])
        except (KeyError, ValueError) as error:
            raise _unfinished(path / "scorecard.json", SCORECARD, error) from error
    config = _read_object(path / "config.json", "the config of a run")
    return FinishedRun(path, cards, config)


def _read_object(path: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unfinished(path, what, error) from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"{path}: expected {what}, got a {kind}; check the path")
    return content


def _unfinished(path: Path, what: str, error: Exception) -> UserError:
    # pydantic's message has several lines; the first says what is wrong.
    reason = str(error).splitlines()[0]
    return UserError(f"{path}: expected {what}, got {reason}; resume the run")

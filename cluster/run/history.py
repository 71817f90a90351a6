"""What the journal says happened, without what a resume has overwritten.

A kill loses what came after the newest checkpoint, and a resume does it again. The journal keeps both. Its lines
`saving` stand where the state of a checkpoint was taken: a resume from that checkpoint goes on from there. A line
`unsaved` takes one back that could not be written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from common.journal import read_events

Event: TypeAlias = Mapping[str, Any]
"""One line of the journal."""

WORK = {"group", "discard", "step", "publish", "row", "warning"}
"""Events of the training itself; `row` is one of them between a start and its end only."""

KEPT = (
    "event",
    "id",
    "source",
    "outcome",
    "pairs",
    "pair_versions",
    "reason",
    "step",
    "version",
    "online",
    "reused",
    "uses",
)
"""What the account reads of an event."""


@dataclass(slots=True)
class History:
    """The events that led to the present state, and what was overwritten.

    Attributes:
        events: events of the training, in order.
        saved: step of a checkpoint -> how many of the events its state holds.
        num_starts: how often the run was started.
        overwritten: kind of event -> how many a resume did again.
        num_offline: pairs of the offline set.
        rows: ids of rows that could not be used, at any time.
    """

    events: list[Event] = field(default_factory=list)
    saved: dict[int, int] = field(default_factory=dict)
    num_starts: int = 0
    overwritten: dict[str, int] = field(default_factory=dict)
    num_offline: int = 0
    rows: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def forget_after(self, step: int) -> None:
        """Go back to where the checkpoint of this step was taken; 0 is the start policy."""
        if step and step not in self.saved:
            self.faults.append(
                f"resumed from step {step}, whose checkpoint was never saved"
            )
        kept = self.saved.get(step, 0)
        for event in self.events[kept:]:
            kind = event["event"]
            self.overwritten[kind] = self.overwritten.get(kind, 0) + 1
        del self.events[kept:]
        self.saved = {saved: at for saved, at in self.saved.items() if saved <= step}


def read_history(journal: Iterable[Event]) -> History:
    """The history of one run directory, from its journal's events in order."""
    history = History()
    is_new_start = False
    is_training = False
    for event in journal:
        kind = event["event"]
        if kind == "start":
            history.num_starts += 1
            is_new_start = True
            is_training = True
        elif kind == "data":
            history.num_offline = event["offline"]
            # Rows of the next start's data sets come before its `start`.
            is_training = False
        elif kind == "resume":
            history.forget_after(event["step"])
            is_new_start = False
        elif kind == "saving":
            history.saved[event["step"]] = len(history.events)
        elif kind == "unsaved":
            history.saved.pop(event["step"], None)
        if kind == "row":
            history.rows.add(event["id"])
        if kind not in WORK or not is_training:
            continue
        if is_new_start:
            # No `resume` came before: the run had no checkpoint, and began again.
            history.forget_after(0)
            is_new_start = False
        history.events.append(_kept(event))
    return history


def _kept(event: Event) -> Event:
    """An event without the texts, which do not fit into memory for a million groups; warnings are few."""
    if event["event"] == "warning":
        return event
    return {name: event[name] for name in KEPT if name in event}


def finished_groups(journal: Path, step: int) -> Iterator[str]:
    """Ids of the groups that had come to their outcome when the checkpoint of `step` was taken, in order."""
    history = read_history(read_events(journal))
    history.forget_after(step)
    for event in history.events:
        if event["event"] == "group":
            yield event["id"]

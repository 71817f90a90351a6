"""What became of the rows of an import or export: counts by reason, with an example of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.records import Dropped
from common.row_faults import such_as

EXAMPLE_CHARS = 600


@dataclass(slots=True)
class Tally:
    """Rows read so far and what became of them: `num_records` and `dropped` count outcomes, at least one per row.

    `end_marks["answers"]` counts the answers that an end of a turn was taken off.
    """

    num_rows: int = 0
    num_records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, dict[str, str]] = field(default_factory=dict)
    end_marks: Counter[str] = field(default_factory=Counter)

    def drop(self, dropped: Dropped) -> None:
        """Count a reason and keep its first case as an example."""
        self.dropped[dropped.reason] += 1
        if dropped.reason not in self.examples:
            self.examples[dropped.reason] = {
                "id": printable(dropped.id),
                "detail": printable(dropped.detail),
            }

    def report(self) -> str:
        """The counts, then the first case of each reason, in one line."""
        first = []
        for reason, example in self.examples.items():
            first.append(Dropped(example["id"], reason, example["detail"]))
        return f"{dict(self.dropped.most_common())}{such_as(first)}"

    def note(self) -> dict[str, Any]:
        """JSON; `Tally.of` reads it."""
        note = {
            "num_rows": self.num_rows,
            "num_records": self.num_records,
            "dropped": dict(self.dropped),
            "examples": dict(self.examples),
        }
        if self.end_marks:
            note["end_marks"] = dict(self.end_marks)
        return note

    @classmethod
    def of(cls, note: Mapping[str, Any]) -> Tally:
        """The tally that a note was made of."""
        return cls(
            num_rows=note["num_rows"],
            num_records=note["num_records"],
            dropped=Counter(note["dropped"]),
            examples=dict(note["examples"]),
            end_marks=Counter(note.get("end_marks", {})),
        )


def print_dropped(title: str, tally: Tally) -> None:
    """Print the drop histogram, with the first case of each reason."""
    console = Console()
    if not tally.dropped:
        console.print(Text(f"{title}, none dropped"))
        return
    table = Table(title=title)
    table.add_column("dropped", no_wrap=True)
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("first case")
    for reason, count in tally.dropped.most_common():
        example = tally.examples[reason]
        # Text, not markup: the example comes from an untrusted data set.
        first_case = Text(f"{example['id']}: {example['detail']}")
        table.add_row(reason, str(count), first_case)
    console.print(table)


def printable(text: str) -> str:
    """The beginning of untrusted text as one line that is safe in a terminal: control characters become spaces."""
    chars = [char if char.isprintable() else " " for char in text[:EXAMPLE_CHARS]]
    return "".join(chars)

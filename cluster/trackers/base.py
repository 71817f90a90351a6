"""What a tracker does, and the rows of a table of completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

HEADS = ("step", "prompt", "completion", "side", "score", "note", "picture")
"""Columns of the table, which all trackers call "completions", as TRL does."""
SIDE = 256
"""Pixels of the longer side of a picture."""


@dataclass(frozen=True, slots=True)
class Row:
    """One completion.

    Attributes:
        prompt: the question's text.
        side: "chosen" or "rejected" in the group's pair; "" for neither.
        score, note: the judge's; None and "" without.
        picture: the prompt's first, scaled down; None where it has none or it cannot be read.
    """

    step: int
    prompt: str
    completion: str
    side: str
    score: float | None
    note: str
    picture: Image.Image | None

    def cells(self, shown: Callable[[Image.Image], Any]) -> tuple[Any, ...]:
        """A value for each of `HEADS`; `shown` makes a tracker's own picture of a picture."""
        picture = None if self.picture is None else shown(self.picture)
        said = (self.prompt, self.completion, self.side)
        return (self.step, *said, self.score, self.note, picture)


class Tracker(Protocol):
    """Takes what a run measures. Everything is called from one thread, in order of the steps."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """The metrics of one learner step."""
        ...

    def completions(self, step: int, rows: Sequence[Row]) -> None:
        """A sample of what was said since the last table."""
        ...

    def close(self, failed: bool) -> None:
        """The run has ended, well or not; what is not sent yet is sent."""
        ...

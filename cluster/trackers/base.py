"""What a tracker does, and the rows of a table of completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

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


class Tracker(Protocol):
    """Takes what a run measures. Everything is called from one thread, in order of the steps."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """The metrics of one learner step."""
        ...

    def completions(self, step: int, rows: Sequence[Row]) -> None:
        """A sample of what was said since the last table."""
        ...

    def close(self) -> None:
        """The run has ended; what is not sent yet is sent."""
        ...

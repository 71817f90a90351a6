"""What a detector says, and when it says it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Metrics: TypeAlias = Mapping[str, float]
"""One line of `metrics.jsonl`."""

AGAIN = 4.0
"""A warning is repeated when what it says has grown by this factor."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A sign that a run does harm.

    Attributes:
        kind: of the detector that says it.
        metric: what it watches.
        step: when it was said.
        since: the step from which on there were signs of it.
        text: one line: what was measured, and which option helps.
    """

    kind: str
    metric: str
    step: int
    since: int
    text: str

    @property
    def line(self) -> str:
        """For logs and reports."""
        return f"step {self.step}, since step {self.since}: {self.text}"


class Detector(Protocol):
    """Watches the metrics of one run, step by step. Equal metrics give equal alerts, so a resume can replay them."""

    def step(self, step: int, metrics: Metrics) -> Alert | None:
        """Look at a step; None when there is nothing to say, or nothing new."""
        ...


class Said:
    """Remembers how bad it was when it was last said."""

    def __init__(self) -> None:
        self._amount = 0.0

    def is_news(self, amount: float) -> bool:
        """Whether this amount is new, or has grown much since it was said; it counts as said then."""
        if amount < AGAIN * self._amount:
            return False
        self._amount = amount
        return True

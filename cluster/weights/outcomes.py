"""What came of a call to several engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.runtime.clients import RolloutClient
from common.records import LoadReport

Failures = tuple[tuple[RolloutClient, Exception], ...]


def sorted_out(
    engines: Sequence[RolloutClient],
    outcomes: Sequence[Any],
) -> tuple[tuple[LoadReport, ...], Failures]:
    """Reports and failures among the outcomes of all engines, in order; what is neither is raised."""
    reports = []
    failures = []
    for engine, outcome in zip(engines, outcomes, strict=True):
        if isinstance(outcome, LoadReport):
            reports.append(outcome)
        elif isinstance(outcome, Exception):
            failures.append((engine, outcome))
        else:
            raise outcome
    return tuple(reports), tuple(failures)

"""A few random faults on a light run; `python -m tests.chaos.campaign` does it at length (docs/reliability.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.trial import Trial

pytestmark = [pytest.mark.real, pytest.mark.chaos]

SEED = 4
ONLY = frozenset(
    (
        "killed controller",
        "killed engine",
        "killed rank",
        "killed judge",
        "damaged checkpoint",
        "torn journal",
    )
)
"""Those that take least time."""


def test_nothing_is_lost_or_trained_twice(tmp_path: Path) -> None:
    report = Trial(SEED, tmp_path, num_faults=4, only=ONLY, num_steps=30).run()
    # Shown where the test fails.
    print(report.line())
    assert report.violations == []
    assert report.faults.total() >= 2
    # Torn files alone would be no test of the supervisor.
    assert any(kind.startswith("killed") for kind in report.faults)

"""Pauses before restarts, for tests that wait for them."""

from __future__ import annotations

import pytest

from cluster.supervision import restarts


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost worker comes back at once."""
    monkeypatch.setattr(restarts, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(restarts, "LONGEST_PAUSE_S", 0.01)

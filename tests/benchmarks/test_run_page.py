"""The benchmark of the run page measures what it says, on a small run."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.run_page import chromium, measure


def test_every_figure_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a browser; the next test has one."""
    monkeypatch.setattr("benchmarks.run_page.chromium", lambda: None)
    figures = measure(40, 1, tmp_path)
    assert figures["pairs"] == 40 and figures["index_s"] > 0
    assert {"charts", "pairs", "filter", "search"} <= set(figures["views_s"])
    assert all(seconds > 0 for seconds in figures["views_s"].values())
    assert figures["browser"] is None


@pytest.mark.real
def test_a_real_browser_is_asked(tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="pip install playwright")
    if chromium() is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    figures = measure(40, 1, tmp_path)["browser"]
    assert set(figures) == {"first_view_s", "filter_s", "search_s"}
    # The page waits for more letters before it searches.
    assert figures["search_s"] > 0.2

"""How soon is the run page of a large run there? `python -m benchmarks.run_page [--pairs 100000]`.

    index_s       until the journal is read, which `--serve` does behind the page's back
    views_s       until the views of a first look are made, without a browser; `filter` and `search` are views of pairs
    browser       seconds of a real Chromium, medians, or null where there is none:
        first_view_s   from the address until scores and curves stand there
        filter_s       from a choice of the filter until its hits stand there
        search_s       from the last letter of a text that one pair has; a quarter of a second of it waits for more

The run is written by hand, with a picture beside every pair. The last line is one JSON object. A Chromium is the
machine's, or the one that SIGHTLINE_CHROMIUM names; it is driven by the package `playwright`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measured_on import measured_on

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PACKAGES = ("playwright", "starlette", "uvicorn")
NUM_PICTURES = 50
GOAL_S = 2.0
"""Of the first view."""
HITS = "text => document.getElementById('found').textContent.startsWith(text)"


def chromium() -> str | None:
    """The path of a Chromium, None where the machine has none."""
    named = os.environ.get("SIGHTLINE_CHROMIUM")
    paths = [named, *[shutil.which(name) for name in NAMES]]
    return next((path for path in paths if path), None)


def measure(num_pairs: int, repeats: int, folder: Path) -> dict[str, Any]:
    """All figures of a run of so many pairs, which is written into the folder."""
    from cluster.run_page.run import RunPage
    from cluster.run_page.server import PageServer
    from tests.cluster.run_page.written_runs import write_run

    run_dir = write_run(folder / "run", num_pairs, num_pictures=NUM_PICTURES)
    with RunPage(run_dir) as run:
        figures: dict[str, Any] = {"pairs": num_pairs}
        figures["index_s"] = _seconds(run.store.read_all)
        views: dict[str, float] = {}
        for name, (view, words) in _views(num_pairs).items():
            views[name] = _seconds(partial(run.view, view, words))
        figures["views_s"] = views
        with PageServer(run, 0) as server:
            figures["browser"] = _in_browser(server.url, num_pairs, repeats)
    return figures


def _views(num_pairs: int) -> Mapping[str, tuple[str, Mapping[str, str]]]:
    names = ("overview", "scores", "charts", "timeline", "drops", "flow", "choices")
    views: dict[str, tuple[str, Mapping[str, str]]] = {}
    for name in (*names, "pairs"):
        views[name] = (name, {})
    views["filter"] = ("pairs", {"what": "dropped:tie", "order": "margin_high"})
    views["search"] = ("pairs", {"text": f"red dog {num_pairs - 1}."})
    return views


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return round(time.perf_counter() - begun, 4)


def _in_browser(url: str, num_pairs: int, repeats: int) -> dict[str, float] | None:
    path = chromium()
    if path is None or importlib.util.find_spec("playwright") is None:
        return None
    from playwright.sync_api import sync_playwright

    samples: dict[str, list[float]] = {}
    with sync_playwright() as tools:
        # As root it does not start within its sandbox.
        browser = tools.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(repeats):
            # A new one has nothing in its cache.
            context = browser.new_context(viewport={"width": 1400, "height": 900})
            for name, value in _looked_at(context.new_page(), url, num_pairs).items():
                samples.setdefault(name, []).append(value)
            context.close()
        browser.close()
    figures: dict[str, float] = {}
    for name, values in samples.items():
        figures[name] = round(statistics.median(values), 3)
    return figures


def _looked_at(page: Any, url: str, num_pairs: int) -> dict[str, float]:
    """What somebody does who opens the page."""
    page.goto(url, wait_until="commit")
    page.wait_for_selector("#scores .content > *")
    page.wait_for_selector("#curves .plot[data-drawn]")
    figures = {"first_view_s": page.evaluate("performance.now()") / 1000}
    page.locator("#pairs").scroll_into_view_if_needed()
    page.wait_for_function(HITS, arg=f"{num_pairs:,} hits")

    def choose() -> None:
        page.select_option("[name=what]", "dropped:tie")
        page.wait_for_function(HITS, arg=f"{num_pairs // 4:,} hits")

    def search() -> None:
        page.fill("[name=text]", f"red dog {num_pairs - 1}.")
        page.wait_for_function(HITS, arg="1 hit")

    figures["filter_s"] = _seconds(choose)
    page.select_option("[name=what]", "pairs")
    page.wait_for_function(HITS, arg=f"{num_pairs:,} hits")
    figures["search_s"] = _seconds(search)
    return figures


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000, help="a multiple of 4")
    parser.add_argument("--repeats", type=int, default=5, help="of the browser's look")
    parser.add_argument("--out", type=Path, help="write the JSON line there as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = measure(arguments.pairs, arguments.repeats, Path(name))
    browser = figures["browser"]
    goal = {"first_view_s": GOAL_S, "met": None}
    if browser is not None:
        goal["met"] = browser["first_view_s"] < GOAL_S
    line = json.dumps({**figures, "goal": goal, **measured_on(PACKAGES)})
    if arguments.out is not None:
        arguments.out.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()

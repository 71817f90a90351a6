"""A run as the page sees it: everything that a view needs, and the views by name."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.run_page.metrics import RunMetrics, charts
from cluster.run_page.overview import drops, flow, judged, overview
from cluster.run_page.pairs import Filter, choices, finite_number, page_of
from cluster.run_page.pictures import Pictures
from cluster.run_page.scores import scores
from cluster.run_page.settings import settings
from cluster.run_page.store import RunStore
from cluster.run_page.timeline import idle_shares, timeline
from cluster.run_page.written_pairs import WrittenPairs
from common.errors import UserError

VIEWS = (
    "overview",
    "charts",
    "timeline",
    "drops",
    "flow",
    "scores",
    "settings",
    "choices",
    "pairs",
)


class RunPage:
    """One run directory, read for the page. A context manager; safe to use from several threads.

    Args:
        other: a run whose config is compared; None compares with the defaults.

    Raises:
        UserError: there is no run.
    """

    def __init__(self, run_dir: Path, other: Path | None = None) -> None:
        self.run_dir = run_dir
        self._config = read_config(run_dir)
        self._other = other
        self._other_config = None if other is None else read_config(other)
        self.store = RunStore(run_dir)
        self.pictures = Pictures(run_dir)
        self.written = WrittenPairs(run_dir)
        self._metrics = RunMetrics(run_dir)
        self._lock = threading.Lock()

    def __enter__(self) -> RunPage:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    @property
    def name(self) -> str:
        """What the page is called."""
        return self.run_dir.resolve().name

    def view(self, name: str, words: Mapping[str, str]) -> Any:
        """A view as plain JSON (UserError for words that it cannot use).

        Args:
            name: one of `VIEWS`.
            words: the query of the page's address.
        """
        match name:
            case "overview":
                return self._overview()
            case "charts":
                return self._charts()
            case "timeline":
                begin, end = _time(words, "begin"), _time(words, "end")
                return timeline(self.store, begin, end)
            case "drops":
                return drops(self.store)
            case "flow":
                # Not while others wait for the metrics: it takes a while of a large run.
                idle = idle_shares(self.store)
                with self._newest_metrics() as metrics:
                    return flow(self.store, metrics, idle)
            case "scores":
                with self._newest_metrics() as metrics:
                    return scores(self.run_dir, self.store, metrics)
            case "settings":
                other = "default" if self._other is None else self._other.name
                return settings(self._config, self._other_config, other)
            case "choices":
                return choices(self.store)
            case "pairs":
                self.written.update()
                return page_of(self.store, self.written, Filter.of_words(words))
        raise UserError(f"view: expected one of {', '.join(VIEWS)}, got {name[:40]!r}")

    def _overview(self) -> dict[str, Any]:
        with self._newest_metrics() as metrics:
            head = overview(self.store, metrics, self._config)
            head["revision"] = f"{self.store.revision}.{metrics.revision}"
        head["name"] = self.name
        return head

    def _charts(self) -> dict[str, Any]:
        with self._newest_metrics() as metrics:
            drawn = charts(metrics)
        drawn["charts"] += judged(self.store)
        return drawn

    @contextmanager
    def _newest_metrics(self) -> Iterator[RunMetrics]:
        """They change for nobody while a view is made of them."""
        with self._lock:
            self._metrics.update()
            yield self._metrics


def read_config(run_dir: Path) -> Mapping[str, Any]:
    """The config of a run.

    Raises:
        UserError: the directory holds no run.
    """
    path = run_dir / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: expected the config of a run, got {reason}; check the path"
        ) from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(
            f"{path}: expected the config of a run, got a {kind}; check the path"
        )
    return content


def _time(words: Mapping[str, str], name: str) -> float | None:
    """Seconds since 1970; None where the words do not say."""
    word = words.get(name, "")
    return finite_number(name, word) if word else None

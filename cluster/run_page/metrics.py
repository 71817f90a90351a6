"""metrics.jsonl by metric, and the table of curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from cluster.run_page.lines import GrowingFile

MAX_POINTS = 1000
"""Of a curve: more than a screen has."""


class Chart(NamedTuple):
    """One plot: its title, what its numbers are, the metrics that it shows, and the section it stands in."""

    title: str
    unit: str
    metrics: tuple[str, ...]
    section: str = "curves"


CHARTS = (
    Chart("Loss", "by source", ("loss", "loss/*")),
    Chart(
        "Margin of the implicit rewards",
        "β · nats, by source",
        ("rewards/margins", "rewards/margins/*"),
    ),
    Chart("Accuracy", "share of pairs ranked right", ("rewards/accuracies",)),
    Chart("Implicit rewards", "β · nats", ("rewards/chosen", "rewards/rejected")),
    Chart("Log-probs", "nats per answer", ("logps/chosen", "logps/rejected")),
    Chart(
        "Distance from the reference",
        "log π/π_ref, nats per token (a sample of the KL)",
        ("drift/chosen", "drift/rejected"),
    ),
    Chart(
        "End of the answer against the reference",
        "log π/π_ref of the end token, nats",
        ("drift/chosen_end", "drift/rejected_end"),
    ),
    Chart("Staleness", "weight versions", ("staleness/mean", "staleness/max")),
    Chart(
        "Length",
        "tokens",
        ("completions/mean_length", "lengths/chosen", "lengths/rejected"),
    ),
    Chart(
        "Cut off and alike",
        "shares of sampled answers",
        (
            "completions/cut_off_frac",
            "completions/distinct_texts",
            "completions/distinct_bigrams",
        ),
    ),
    Chart(
        "Judge's scores",
        "mean of completions, by judge",
        ("judge/score", "judge/score/*"),
    ),
    Chart(
        "What the judge tells apart",
        "best - worst score of a group, by judge",
        ("judge/spread", "judge/spread/*"),
    ),
    Chart(
        "The judge's habits",
        "shares of groups",
        ("judge/longer_wins", "judge/first_wins"),
    ),
    Chart("Validation", "score that picks the checkpoint", ("validation/score",)),
    Chart(
        "Pairs of a step",
        "by source",
        ("pairs/*", "!pairs/dropped/*", "!pairs/accepted", "!pairs/online_frac"),
    ),
    Chart("Online pairs", "share of a step's batch", ("pairs/online_frac",)),
    Chart("Gradient", "norm", ("grad_norm",)),
    Chart("Learning rate", "", ("lr",)),
    Chart(
        "Grounding of the implicit rewards",
        "share ranked right with each picture",
        ("grounding/accuracy_*",),
        "grounding",
    ),
    Chart(
        "What the picture adds",
        "accuracy with it - the best without it",
        ("grounding/gain",),
        "grounding",
    ),
    Chart(
        "Engine and learner on the same answers",
        "mean |Δ log-prob|, nats",
        ("weights/probe_abs",),
        "probe",
    ),
    Chart("KL between learner and engine", "nats", ("weights/probe_kl",), "probe"),
    Chart(
        "Share of the gate's limit",
        "above 1 the run stops",
        ("weights/probe_load",),
        "probe",
    ),
    Chart("Seconds of a step", "s", ("time/*",), "flow"),
)


class RunMetrics:
    """The steps of metrics.jsonl, read again when a resume has cut it.

    Attributes:
        steps: in order.
        columns: metric -> a value for each step; None where the step has none.
        revision: another number whenever there is news.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "metrics.jsonl"
        self.revision = 0
        self._begin_again()

    def _begin_again(self) -> None:
        self._file = GrowingFile(self._path)
        self.steps: list[int] = []
        self.columns: dict[str, list[float | None]] = {}

    def update(self) -> None:
        """Read what is new."""
        if self._file.was_replaced():
            self._begin_again()
            self.revision += 1
        while True:
            before = self._file.offset
            for line in self._file.new_lines():
                self._add(line.value)
            if self._file.offset == before:
                return
            self.revision += 1

    def _add(self, values: Mapping[str, Any]) -> None:
        if not isinstance(values.get("step"), int):
            return
        for name in values:
            if name != "step" and name not in self.columns:
                self.columns[name] = [None] * len(self.steps)
        self.steps.append(values["step"])
        for name, column in self.columns.items():
            column.append(_finite(values.get(name)))

    def last(self, name: str) -> float | None:
        """The newest value of a metric; None where there is none."""
        column = self.columns.get(name, [])
        return column[-1] if column else None

    def total(self, name: str) -> float:
        """The sum of a metric over all steps."""
        return sum(value for value in self.columns.get(name, []) if value is not None)


def charts(metrics: RunMetrics) -> dict[str, Any]:
    """All curves as plain JSON: {"steps": […], "charts": [{title, unit, section, series}, …]}."""
    places = evenly(len(metrics.steps), MAX_POINTS)
    shown: set[str] = set()
    drawn: list[dict[str, Any]] = []
    for chart in CHARTS:
        names = _matching(metrics.columns, chart.metrics)
        shown.update(names)
        if names:
            drawn.append(_drawn(metrics, chart, names, places))
    for name in sorted(metrics.columns):
        # What the table does not know is shown all the same, at the end.
        if name not in shown and not name.startswith("pairs/dropped/"):
            chart = Chart(name, "", (name,), "others")
            drawn.append(_drawn(metrics, chart, [name], places))
    steps = [metrics.steps[place] for place in places]
    return {"steps": steps, "num_steps": len(metrics.steps), "charts": drawn}


def _drawn(
    metrics: RunMetrics, chart: Chart, names: Sequence[str], places: Sequence[int]
) -> dict[str, Any]:
    series: list[dict[str, Any]] = []
    for name in names:
        column = metrics.columns[name]
        values = [column[place] for place in places]
        series.append({"name": name, "values": values})
    return {
        "title": chart.title,
        "unit": chart.unit,
        "section": chart.section,
        "series": series,
    }


def _matching(columns: Mapping[str, Any], patterns: Sequence[str]) -> list[str]:
    """The metrics that patterns name; those after `!` are left out."""
    names: list[str] = []
    for pattern in patterns:
        if pattern.startswith("!"):
            names = [name for name in names if not fnmatchcase(name, pattern[1:])]
            continue
        for name in columns:
            if fnmatchcase(name, pattern) and name not in names:
                names.append(name)
    return names


def evenly(count: int, most: int) -> list[int]:
    """At most `most` places of `count`, evenly spread; the last one is always among them."""
    if count <= most:
        return list(range(count))
    places: list[int] = []
    for number in range(most):
        places.append(round(number * (count - 1) / (most - 1)))
    return places


def _finite(value: Any) -> float | None:
    """A number that JSON knows; None for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None

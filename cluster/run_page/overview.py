"""Where a run stands: its head line, its last step, its throughput and its waste."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from cluster.harm.alert import Alert
from cluster.run_page.items import ROW_SOURCE
from cluster.run_page.metrics import MAX_POINTS, RunMetrics
from cluster.run_page.store import DROPPED_AT, Event, RunStore

RECENT_STEPS = 20
"""Steps that the present rate is of."""
SILENT_S = 120.0
"""A run that has written nothing for so long may have ended without a word."""
OF_A_STEP = {
    "time/wait_s": "waited for pairs",
    "time/step_s": "trained",
    "time/publish_s": "pushed weights",
    "time/checkpoint_wait_s": "waited for the last checkpoint",
    "time/checkpoint_copy_s": "copied the checkpoint",
}
"""Metric -> what the learner did in these seconds of a step."""

WAS_PAIR = "(reason = '' or ended is not null)"
"""The rows that were accepted as pairs, whatever became of them."""
JUDGED = {
    ("The judge's scores", "mean of a step's groups"): (
        "score",
        "score is not null and pair = 0",
    ),
    ("The judge's margins", "chosen - rejected, mean of a step's pairs"): (
        "margin",
        f"margin is not null and {WAS_PAIR}",
    ),
}
"""Title and unit -> what is averaged, and of which rows."""


def overview(
    store: RunStore, metrics: RunMetrics, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The head of the page as plain JSON."""
    steps = store.events["step"]
    step = steps[-1]["step"] if steps else 0
    num_steps = config.get("learner", {}).get("num_steps", 0)
    # Between two starts nothing is trained.
    began = max(store.started_at, store.last("resume").get("time", 0.0))
    recent = [event for event in steps[-RECENT_STEPS:] if event["time"] >= began]
    rate = _steps_per_s(recent)
    state, why = _state(store)
    left_s = None
    if rate and state == "running":
        left_s = (num_steps - step) / rate
    return {
        "state": state,
        "why": why,
        "step": step,
        "num_steps": num_steps,
        "pairs_per_s": _pairs_per_s(recent),
        "elapsed_s": steps[-1]["time"] - _began(store) if steps else None,
        "left_s": left_s,
        "last_step": _last_step(metrics),
        "num_restarts": len(store.events["restart"]),
        "warnings": _warnings(store.events["warning"]),
        "read_frac": store.read_frac,
    }


def _state(store: RunStore) -> tuple[str, str]:
    """`running`, `silent`, `ended` or `failed`, and what there is to say of it."""
    ended = store.last("ended")
    if ended and ended["time"] >= store.started_at:
        state = "failed" if ended["status"] else "ended"
        return state, ended["why"]
    # Runs of before said nothing at their end.
    if store.picked():
        return "ended", ""
    newest = max((event["time"] for event in _newest(store)), default=None)
    if newest is None:
        return "silent", "nothing is written yet"
    silent_s = time.time() - newest
    if silent_s > SILENT_S:
        return "silent", f"nothing was written for {silent_s:,.0f} s"
    return "running", ""


def _newest(store: RunStore) -> list[Mapping[str, Any]]:
    events = [store.last(kind) for kind in ("data", "start", "step", "publish")]
    events = [event for event in events if event]
    if store.work:
        events.append({"time": store.work[-1][3]})
    for (at,) in store.ask("select time from items order by place desc limit 1"):
        events.append({"time": at})
    return events


def _began(store: RunStore) -> float:
    starts = store.events["start"]
    if starts:
        return float(starts[0]["time"])
    return float(store.events["step"][0]["time"])


def _steps_per_s(steps: Sequence[Event]) -> float | None:
    if len(steps) < 2:
        return None
    seconds: float = steps[-1]["time"] - steps[0]["time"]
    return (len(steps) - 1) / seconds if seconds > 0 else None


def _pairs_per_s(steps: Sequence[Event]) -> float | None:
    rate = _steps_per_s(steps)
    if rate is None:
        return None
    num_pairs: int = sum(step["pairs"] for step in steps[1:])
    return rate * num_pairs / (len(steps) - 1)


def _last_step(metrics: RunMetrics) -> list[list[Any]]:
    parts: list[list[Any]] = []
    for name, what in OF_A_STEP.items():
        seconds = metrics.last(name)
        if seconds:
            parts.append([what, seconds])
    return sorted(parts, key=lambda part: -part[1])


def _warnings(events: Sequence[Event]) -> list[str]:
    lines: list[str] = []
    for event in events:
        fields = {name: event[name] for name in Alert.__match_args__}
        lines.append(Alert(**fields).line)
    return lines


def flow(
    store: RunStore, metrics: RunMetrics, idle: Mapping[str, float]
) -> dict[str, Any]:
    """What became of everything that was sampled, and of the time.

    Args:
        idle: worker -> the share of the training in which nothing was asked of it.

    Returns:
        {"groups": [[what, count, share], …], "pairs": the same, "seconds": the same, "idle": {worker: share},
        "num_repeated"}.
    """
    groups = dict(
        store.ask(
            f"select case when {WAS_PAIR} then 'became pairs' else reason end, count(*) "
            "from items where pair = 0 and source != ? group by 1 order by 2 desc",
            (ROW_SOURCE,),
        )
    )
    trained, discarded, waiting = store.ask(
        "select count(step), sum(reason != '' and ended is not null), sum(reason = '' and step is null) "
        f"from items where {WAS_PAIR}"
    )[0]
    offline = sum(step["pairs"] - step["online"] for step in store.events["step"])
    pairs = {
        "trained, online": trained,
        "trained, offline": offline,
        "discarded": discarded or 0,
        "waiting": waiting or 0,
    }
    seconds = {what: metrics.total(name) for name, what in OF_A_STEP.items()}
    return {
        "groups": _shares(groups),
        "pairs": _shares(pairs),
        "seconds": _shares(seconds),
        "idle": idle,
        "num_repeated": store.num_repeated,
    }


def _shares(counts: Mapping[str, float]) -> list[list[Any]]:
    total = sum(counts.values())
    rows: list[list[Any]] = []
    for name, count in counts.items():
        rows.append([name, count, count / total if total else 0.0])
    return rows


def drops(store: RunStore) -> dict[str, Any]:
    """Drops by reason over the steps, and rows of data sets that the newest start refused.

    Returns:
        {"steps": […], "width", "series": [{"name", "values", "total"}], "rows": [[reason, count, example], …]}, most
        frequent first.
    """
    rows = store.ask(
        f"select {DROPPED_AT}, reason, count(*) from items where reason != '' group by 1, 2"
    )
    last = max((row[0] for row in rows), default=0)
    width = max(1, -(-last // 200))
    num_bins = -(-last // width)
    counts: dict[str, list[int]] = {}
    for step, reason, count in rows:
        bins = counts.setdefault(reason, [0] * num_bins)
        bins[(step - 1) // width] += count
    series: list[dict[str, Any]] = []
    for reason, values in sorted(counts.items(), key=lambda part: -sum(part[1])):
        series.append({"name": reason, "values": values, "total": sum(values)})
    steps = [1 + number * width for number in range(num_bins)]
    refused = _refused_rows(store.last("data"))
    return {"steps": steps, "width": width, "series": series, "rows": refused}


def _refused_rows(data: Mapping[str, Any]) -> list[list[Any]]:
    examples = data.get("examples", {})
    rows: list[list[Any]] = []
    for reason, count in data.get("dropped", {}).items():
        rows.append([reason, count, examples.get(reason, "")])
    return sorted(rows, key=lambda row: -row[1])


def judged(store: RunStore) -> list[dict[str, Any]]:
    """The judge's scores and margins by source over the steps, as charts of `metrics.charts`."""
    drawn: list[dict[str, Any]] = []
    for (title, unit), (measured, condition) in JUDGED.items():
        series = _series_by_source(store, measured, condition)
        if series:
            drawn.append(
                {"title": title, "unit": unit, "section": "curves", "series": series}
            )
    return drawn


def _series_by_source(
    store: RunStore, measured: str, condition: str
) -> list[dict[str, Any]]:
    last = store.ask("select max(settled) from items")[0][0] or 0
    width = max(1, -(-last // MAX_POINTS))
    rows = store.ask(
        f"select source, (settled - 1) / ? * ? + 1, avg({measured}) from items where {condition} group by 1, 2",
        (width, width),
    )
    series: list[dict[str, Any]] = []
    for source, of_source in groupby(rows, lambda row: row[0]):
        points = list(of_source)
        steps = [step for _, step, _ in points]
        values = [value for _, _, value in points]
        series.append({"name": source, "steps": steps, "values": values})
    return series

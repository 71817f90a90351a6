"""How good the policy is: the test split before and after, every validation, and the grounding gate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.evaluation.score_table import (
    grounding_lines,
    harm_lines,
    metric_rows,
    missing_lines,
    suite_names,
)
from cluster.evaluation.summary import TRAINED, what_changed
from cluster.run_page.metrics import RunMetrics
from cluster.run_page.store import Event, RunStore
from reward.suites.scorecard import Scorecard

NOT_METRICS = frozenset(("event", "time", "step", "suite", "dropped", "intervals"))


def read_cards(run_dir: Path) -> dict[str, Scorecard]:
    """`before` and `after`, as far as they are measured; a run that goes on has at most the first."""
    cards: dict[str, Scorecard] = {}
    for label, name in (("before", "baseline"), ("after", "final")):
        card = _card(run_dir / "scorecard.json", name)
        if card is None:
            card = _card(run_dir / "evaluation" / f"{name}.json", "scorecard")
        if card is not None:
            cards[label] = card
    return cards


def _card(path: Path, key: str) -> Scorecard | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Scorecard.model_validate(content[key])
    # It is not there yet, or of another version.
    except (OSError, ValueError, KeyError, TypeError):
        return None


def scores(run_dir: Path, store: RunStore, metrics: RunMetrics) -> dict[str, Any]:
    """Everything that was measured.

    Returns:
        {"changed": a sentence, "policies", "suites": [{name, summary, rows}], "grounding": [[policy, line, warns]],
        "harm", "missing", "validations": [{suite, metrics, rows: [[step, [[value, low, high], …]]]}], "picked"}.
    """
    cards = read_cards(run_dir)
    grounding: list[list[Any]] = []
    missing: list[str] = []
    for policy, card in cards.items():
        for line, warns in grounding_lines(card):
            grounding.append([policy, line, warns])
        missing += [f"{policy}: {line}" for line in missing_lines(card)]
    harm = harm_lines(cards["after"]) if "after" in cards else []
    return {
        "changed": _changed(cards, store, metrics),
        "policies": list(cards),
        "suites": [_suite(cards, name) for name in suite_names(list(cards.values()))],
        "grounding": grounding,
        "harm": harm,
        "missing": missing,
        "validations": _validations(store),
        "picked": store.picked().get("step"),
    }


def _changed(
    cards: Mapping[str, Scorecard], store: RunStore, metrics: RunMetrics
) -> str:
    """What the run came to, in a sentence; "" while it goes on."""
    if "after" not in cards:
        return ""
    # Of the start that measured it; a newer one may go on.
    picked = store.last("picked").get("step")
    trained = metrics.points(TRAINED)
    return what_changed(cards["before"], cards["after"], metrics.steps, trained, picked)


def _suite(cards: Mapping[str, Scorecard], name: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for row in metric_rows(list(cards.values()), name):
        rows.append(row._asdict())
    summaries = [
        card.suites[name].summary for card in cards.values() if name in card.suites
    ]
    return {"name": name, "summary": summaries[-1], "rows": rows}


def _validations(store: RunStore) -> list[dict[str, Any]]:
    """By suite, a row for every step that was scored."""
    by_suite: dict[str, dict[int, Event]] = {}
    for event in store.events["validation"]:
        by_suite.setdefault(event["suite"], {})[event["step"]] = event
    tables: list[dict[str, Any]] = []
    for suite, of_suite in by_suite.items():
        metrics = _metric_names(list(of_suite.values()))
        rows: list[list[Any]] = []
        for step, event in sorted(of_suite.items()):
            bounds = event.get("intervals", {})
            cells: list[Any] = []
            for metric in metrics:
                low, high = bounds.get(metric, (None, None))
                cells.append([event.get(metric), low, high])
            rows.append([step, cells])
        tables.append({"suite": suite, "metrics": metrics, "rows": rows})
    return tables


def _metric_names(events: Sequence[Mapping[str, Any]]) -> list[str]:
    names: list[str] = []
    for event in events:
        for name, value in event.items():
            # Counts are whole numbers.
            if isinstance(value, float) and name not in (*NOT_METRICS, *names):
                names.append(name)
    return names

"""Scorecards in words, for the terminal's table and the samples page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from common.evaluation import Metric
from reward.suites.grounding import Grounding
from reward.suites.scorecard import Scorecard, SuiteCard


class MetricRow(NamedTuple):
    """One metric: `cells` are (value, interval) per policy."""

    label: str
    better: str
    meaning: str
    cells: list[tuple[str, str]]


def suite_names(cards: Sequence[Scorecard]) -> list[str]:
    """The suites that any card has, in order."""
    names: list[str] = []
    for card in cards:
        for name in card.suites:
            if name not in names:
                names.append(name)
    return names


def metric_rows(cards: Sequence[Scorecard], suite: str) -> list[MetricRow]:
    """A suite's metrics with a label that any card has."""
    suite_cards: list[SuiteCard] = []
    for card in cards:
        suite_card = card.suites.get(suite, SuiteCard())
        suite_cards.append(suite_card)
    # A metric without a label is for the JSON alone.
    labelled: dict[str, Metric] = {}
    for suite_card in suite_cards:
        for name, metric in suite_card.metrics.items():
            if metric.label:
                labelled.setdefault(name, metric)
    rows: list[MetricRow] = []
    for name, metric in labelled.items():
        cells = [_cell(suite_card.metrics.get(name)) for suite_card in suite_cards]
        row = MetricRow(
            label=metric.label,
            better=metric.better,
            meaning=metric.meaning,
            cells=cells,
        )
        rows.append(row)
    return rows


def grounding_lines(card: Scorecard) -> list[tuple[str, bool]]:
    """What the grounding gate measured, in words, and whether the line is a warning."""
    grounding = card.grounding
    if grounding is None:
        return []
    if grounding.gain is None:
        line = f"grounding not measured: {grounding.missing}"
        return [(line, False)]
    lines = [(_grounding_line(grounding, grounding.gain), False)]
    if grounding.warning:
        line = f"WARNING {grounding.warning}"
        lines.append((line, True))
    return lines


def harm_lines(policy: Scorecard) -> list[str]:
    """Where a policy is worse than the start policy, in words; [] when it is not."""
    harm = policy.harm
    if harm is None:
        return []
    lines: list[str] = []
    for name in harm.worse:
        change = _change_line(name, policy)
        lines.append(f"WORSE than the start policy: {change}")
    conclusion = "the start policy is the better one; this policy is kept all the same"
    if harm.better_policy == "neither":
        better = ", ".join(harm.better)
        conclusion = f"neither policy is the better one: better by {better}"
    lines.append(conclusion)
    return lines


def missing_lines(card: Scorecard) -> list[str]:
    """Why metrics are absent."""
    lines: list[str] = []
    for suite, suite_card in card.suites.items():
        for metric, reason in suite_card.missing.items():
            lines.append(f"{suite}.{metric} not measured: {reason}")
    return lines


def _change_line(name: str, card: Scorecard) -> str:
    suite, _, metric = name.rpartition(".")
    suite_card = card.suites[suite]
    change = suite_card.changes[metric]
    digits = suite_card.metrics[metric].digits
    form = f"+.{digits}f"
    low, high = change.interval
    bounds = f"{low:{form}} – {high:{form}}"
    return f"{name} {change.value:{form}} ({bounds})"


def _grounding_line(grounding: Grounding, gain: float) -> str:
    accuracies: list[str] = []
    for condition, accuracy in grounding.accuracy.items():
        accuracies.append(f"{accuracy:.3f} with the {condition} picture")
    low, high = grounding.intervals["gain"]
    ranked_by = grounding.ranked_by.replace("_", " ")
    ranked_by = ranked_by.replace("logp", "log-prob")
    return (
        f"grounding: right in {', '.join(accuracies)}; "
        f"gain {gain:.3f} ({low:.3f} – {high:.3f}), "
        f"{grounding.num_pairs} pairs ranked by {ranked_by}"
    )


def _cell(metric: Metric | None) -> tuple[str, str]:
    if metric is None:
        return "–", ""
    # A metric without an interval is shown as if it had no spread.
    low = high = metric.value
    if metric.interval is not None:
        low, high = metric.interval
    digits = metric.digits
    value = f"{metric.value:.{digits}f}"
    interval = f"{low:.{digits}f} – {high:.{digits}f}"
    return value, interval

"""Hallucination by what is wrong. CHAIR counts objects that are not there; these count what is said of those that are.

    attribute_errors   wrong colours / colours said
    relation_errors    wrong places and relations / places and relations said
    count_errors       wrong numbers and second mentions / numbers said and second mentions

What a text says of a thing that is not there is counted by CHAIR alone. A part of which no text says anything has no
metric.
"""

from __future__ import annotations

from collections.abc import Mapping

from common.evaluation import MetricInfo
from reward.suites.bootstrap import Array, Columns, ratio

PARTS = ("attribute", "relation", "count")


def said_column(part: str) -> str:
    """The column of what is said of a part."""
    return f"{part}/said"


def wrong_column(part: str) -> str:
    """The column of what is wrong of it."""
    return f"{part}/wrong"


PART_COUNTS = (*map(said_column, PARTS), *map(wrong_column, PARTS))


def part_infos(tasks: tuple[str, ...]) -> dict[str, MetricInfo]:
    """What tables say of the three metrics."""
    meanings = {
        "attribute": "wrong colours of what is there",
        "relation": "wrong places and relations of what is there",
        "count": "wrong numbers of what is there, or named twice",
    }
    infos: dict[str, MetricInfo] = {}
    for part, meaning in meanings.items():
        label = f"{part} errors"
        infos[f"{part}_errors"] = MetricInfo(label, "lower", meaning, tasks=tasks)
    return infos


def part_errors(totals: Columns, counted: Mapping[str, int]) -> dict[str, Array]:
    """The metrics of those parts of which anything is said; `counted` are the columns' totals over all answers."""
    metrics: dict[str, Array] = {}
    for part in PARTS:
        if counted[said_column(part)]:
            wrong = totals[wrong_column(part)]
            said = totals[said_column(part)]
            metrics[f"{part}_errors"] = ratio(wrong, said)
    return metrics

"""samples.html: what the policy said before and after, beside the picture, with every wrong word marked.

One self-contained file, pictures inlined. The answers are the first ones of the split, not picked; the one with the
worst faults comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.evaluation.measured import Measured
from cluster.evaluation.score_table import (
    MetricRow,
    grounding_lines,
    harm_lines,
    metric_rows,
)
from cluster.pages import Span, marked, pictures_of, template
from common.conversation import question_of
from common.evaluation import LegendEntry
from common.paths import replace_file
from common.protocols import Suite
from common.records import RolloutGroup, Verdict


@dataclass(frozen=True, slots=True)
class MarkedAnswer:
    """One answer with its errors marked, the notes below it, and what the judge gave and noted, "" for nothing."""

    spans: tuple[Span, ...]
    note_label: str
    notes: tuple[str, ...]
    score: str
    judge_note: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of the page; `pictures` are data URLs, `start` is None when only one policy was asked."""

    id: str
    question: str
    pictures: tuple[str, ...]
    final: MarkedAnswer
    start: MarkedAnswer | None
    weight: int


@dataclass(frozen=True, slots=True)
class Section:
    """One suite's part of the page."""

    name: str
    summary: str
    dropped: dict[str, int]
    rows: list[MetricRow]
    unit: str
    legend: Sequence[LegendEntry]
    samples: list[Sample]


def write_samples(
    path: Path,
    suites: Sequence[Suite],
    final: Measured,
    start: Measured | None = None,
    limit: int = 24,
    title: str = "Samples",
) -> None:
    """Write the page for the first `limit` shown answers of every suite."""
    sections: list[Section] = []
    for suite in suites:
        sections.append(_section(suite, final, start, limit))
    html = template("samples.html.j2").render(
        title=title,
        sections=sections,
        compared=start is not None,
        grounding=_grounding(final, start),
        harm=harm_lines(final.card),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, html)


def _grounding(final: Measured, start: Measured | None) -> list[tuple[str, str, bool]]:
    """Label, line, and whether the line is a warning."""
    cards = {"grounding": final.card}
    if start is not None:
        cards = {"before": start.card, "after": final.card}
    labelled_lines: list[tuple[str, str, bool]] = []
    for label, card in cards.items():
        for line, is_warning in grounding_lines(card):
            labelled_lines.append((label, line, is_warning))
    return labelled_lines


def _section(
    suite: Suite,
    final: Measured,
    start: Measured | None,
    limit: int,
) -> Section:
    card = final.card.suites[suite.name]
    cards = [final.card]
    before: dict[str, RolloutGroup] = {}
    if start is not None:
        cards = [start.card, final.card]
        for group in _shown_groups(suite, start):
            before[group.prompt.id] = group
    verdicts = final.verdicts.get(suite.name, {})
    samples: list[Sample] = []
    for group in _shown_groups(suite, final)[:limit]:
        # The start policy may have dropped this one.
        start_group = before.get(group.prompt.id)
        verdict = verdicts.get(group.prompt.id)
        samples.append(_sample(suite, group, start_group, verdict))
    # Equal weights keep the order of ids, so that the page is the same each time.
    samples.sort(key=_worst_first)
    return Section(
        name=suite.name,
        summary=card.summary,
        dropped=card.dropped,
        rows=metric_rows(cards, suite.name),
        unit=suite.unit,
        legend=suite.legend,
        samples=samples,
    )


def _worst_first(sample: Sample) -> tuple[int, str]:
    return -sample.weight, sample.id


def _shown_groups(suite: Suite, measured: Measured) -> list[RolloutGroup]:
    tasks = measured.answers.suites[suite.name].tasks
    groups: list[RolloutGroup] = []
    for name in suite.shown_tasks:
        groups += tasks.get(name, ())
    return groups


def _sample(
    suite: Suite,
    final: RolloutGroup,
    start: RolloutGroup | None,
    verdict: Verdict | None,
) -> Sample:
    """`verdict` is on (the policy's answer, the start policy's)."""
    answer, weight = _marked_answer(suite, final, verdict, 0)
    before: MarkedAnswer | None = None
    if start is not None:
        before, _ = _marked_answer(suite, start, verdict, 1)
    return Sample(
        id=final.prompt.id,
        question=question_of(final.prompt),
        pictures=pictures_of(final.prompt),
        final=answer,
        start=before,
        weight=weight,
    )


def _marked_answer(
    suite: Suite, group: RolloutGroup, verdict: Verdict | None, place: int
) -> tuple[MarkedAnswer, int]:
    """The answer with its errors marked and the judge's score, and how bad the errors are."""
    shown = suite.show(group.prompt, group.completions[0].text)
    spans = marked(shown.text, list(shown.marks))
    score = judge_note = ""
    if verdict is not None:
        score = f"{verdict.scores[place]:.4g}"
        judge_note = verdict.notes[place] if verdict.notes else ""
    answer = MarkedAnswer(spans, shown.note_label, shown.notes, score, judge_note)
    return answer, shown.weight

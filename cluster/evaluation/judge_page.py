"""judge.html: what a judge is worth, and the pairs about which it and the labels differ, with their pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.evaluation.judge_quality import JudgedPairs
from cluster.pages import pictures_of, template
from common.conversation import question_of
from common.paths import replace_file
from common.records import PreferencePair, Verdict
from reward.judge_quality import MEANINGS, BothOrders, JudgeQuality

SHOWN_CHARACTERS = 1200
"""Longer texts are cut on the page."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a pair: its label, its text, and what the judge gave it in both orders."""

    name: str
    text: str
    scores: tuple[float, float]
    note: str


@dataclass(frozen=True, slots=True)
class Case:
    """A pair on which the judge was wrong; `pictures` are data URLs."""

    id: str
    pictures: tuple[str, ...]
    question: str
    outcome: str
    sides: tuple[Side, Side]


def quality_rows(quality: JudgeQuality) -> list[tuple[str, str, str, str]]:
    """(metric, value, 95 % interval, meaning)."""
    rows: list[tuple[str, str, str, str]] = []
    for name, meaning in MEANINGS.items():
        if name not in quality.metrics:
            continue
        interval = ""
        if name in quality.intervals:
            low, high = quality.intervals[name]
            interval = f"{low:.3f} – {high:.3f}"
        label = name.replace("_", " ")
        rows.append((label, f"{quality.metrics[name]:.3f}", interval, meaning))
    return rows


def write_judge_page(
    path: Path,
    quality: JudgeQuality,
    pairs: Sequence[PreferencePair],
    judged: JudgedPairs,
    limit: int,
) -> None:
    """Write the page with at most `limit` errors, wrong ones before undecided ones."""
    html = template("judge.html.j2").render(
        quality=quality,
        rows=quality_rows(quality),
        cases=list(_cases(pairs, judged, limit)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, html)


def _cases(
    pairs: Sequence[PreferencePair], judged: JudgedPairs, limit: int
) -> Iterator[Case]:
    errors: list[tuple[float, int]] = []
    for index, pair in enumerate(pairs):
        if pair.id in judged.seen:
            agreement = judged.seen[pair.id].agreement
            if agreement < 1:
                errors.append((agreement, index))
    for _, index in sorted(errors)[:limit]:
        pair = pairs[index]
        yield _case(pair, judged.seen[pair.id])


def _case(pair: PreferencePair, verdicts: BothOrders) -> Case:
    first, second = verdicts.chosen_first, verdicts.chosen_second
    chosen = Side(
        "labelled better",
        pair.chosen.text[:SHOWN_CHARACTERS],
        (first.scores[0], second.scores[1]),
        _note(first, 0),
    )
    rejected = Side(
        "labelled worse",
        pair.rejected.text[:SHOWN_CHARACTERS],
        (first.scores[1], second.scores[0]),
        _note(first, 1),
    )
    return Case(
        id=pair.id,
        pictures=pictures_of(pair.prompt),
        question=question_of(pair.prompt),
        outcome=_outcome(verdicts),
        sides=(chosen, rejected),
    )


def _outcome(verdicts: BothOrders) -> str:
    if verdicts.agreement == 0:
        return "wrong in both orders"
    if verdicts.contradicts:
        return "contradicts itself when the sides change places"
    return "undecided"


def _note(verdict: Verdict, index: int) -> str:
    return verdict.notes[index] if verdict.notes else ""

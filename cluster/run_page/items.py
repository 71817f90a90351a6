"""A group of the journal as rows of the page: each of its pairs, or the group that was dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROW_SOURCE = "rows of data sets"
"""Where drops come from that are no groups."""


@dataclass(frozen=True, slots=True)
class Item:
    """One pair or one dropped group.

    Attributes:
        reason: why it was dropped; "" for a pair.
        version: the oldest weights that sampled it; None where nothing was sampled.
        margin: score of the chosen side - score of the rejected side; None without a judge.
        score: the judge's mean score of the group.
        text: what a search looks in.
    """

    id: str
    source: str
    reason: str = ""
    version: int | None = None
    margin: float | None = None
    score: float | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion of a group, or one side of a pair; `score` and `note` are the judge's."""

    text: str
    score: float | None = None
    note: str = ""
    version: int | None = None


def items_of(event: Mapping[str, Any]) -> list[Item]:
    """The rows of an event `group`."""
    answers = answers_of(event)
    versions = [answer.version for answer in answers if answer.version is not None]
    version = min(versions, default=None)
    scores = [answer.score for answer in answers if answer.score is not None]
    score = sum(scores) / len(scores) if scores else None
    text = "\n".join(_text(answer) for answer in answers)
    source = event["source"]
    if event["outcome"] != "pair":
        detail = event.get("detail", "")
        text = f"{text}\n{detail}"
        margin = max(scores) - min(scores) if scores else None
        reason = event["outcome"]
        return [Item(event["id"], source, reason, version, margin, score, text)]
    items: list[Item] = []
    for number, (pair_id, pair_scores) in enumerate(pair_scores_of(event).items()):
        sides = sides_of(event, number)
        # Without a judge nothing but the pair is there.
        of_pair = "\n".join(_text(side) for side in sides if side is not None)
        margin = None
        if pair_scores is not None:
            margin = pair_scores[0] - pair_scores[1]
        items.append(Item(pair_id, source, "", version, margin, score, of_pair))
    return items


def pair_scores_of(event: Mapping[str, Any]) -> Mapping[str, Sequence[float] | None]:
    """Pair id -> scores of (chosen, rejected), for the pairs that a group became."""
    pairs: Mapping[str, Sequence[float] | None] | None = event.get("pairs")
    if pairs is not None:
        return pairs
    return {event["id"]: event.get("scores")}


def answers_of(event: Mapping[str, Any]) -> list[Answer]:
    """The completions of a group, as they were judged."""
    texts = event.get("completions", ())
    scores = event.get("verdict") or [None] * len(texts)
    notes = event.get("notes") or [""] * len(texts)
    versions = event.get("weight_versions") or [None] * len(texts)
    answers: list[Answer] = []
    for values in zip(texts, scores, notes, versions, strict=True):
        answers.append(Answer(*values))
    return answers


def sides_of(
    event: Mapping[str, Any], number: int
) -> tuple[Answer | None, Answer | None]:
    """Chosen and rejected side of the group's pair of this number; None for a side that the journal does not hold.

    Online BDHS samples the rejected side only; the chosen one is the data set's reference.
    """
    answers = answers_of(event)
    chosen = event.get("chosen") or ()
    if number >= len(chosen):
        return None, answers[number] if number < len(answers) else None
    return answers[chosen[number]], answers[event["rejected"][number]]


def _text(answer: Answer) -> str:
    return f"{answer.text}\n{answer.note}"

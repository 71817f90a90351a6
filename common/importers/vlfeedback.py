"""VLFeedback: `{id, prompt, completions, img_path | image}`, with several answers per prompt, rated on three aspects.

Every two answers of a row make a pair: the one with the higher mean rating is chosen, and the means are its scores.
`completions` is a list of dicts or, as `datasets` writes it, a dict of lists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from common.errors import Refused
from common.importers.base import Draft, Importer, images_field, question, text_field
from common.records import Dropped

ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")


@dataclass(frozen=True, slots=True)
class Rated:
    """An answer and its mean rating, None when it has none."""

    text: Any
    mean: float | None


def convert(row: dict[str, Any]) -> Iterator[Draft | Dropped]:
    """All pairs of a row; Dropped `tie`, and `rating_missing` for a pair of which one answer lacks a rating."""
    images = images_field(row, "img_path") or images_field(row, "image")
    messages = question(text_field(row, "prompt"), len(images))
    answers = []
    for answer in _answers(row):
        mean = mean_rating(answer.get("annotations"))
        answers.append(Rated(answer.get("response"), mean))
    for (i, left), (j, right) in combinations(enumerate(answers), 2):
        tag = f"{i}-{j}"
        if left.mean is None or right.mean is None:
            yield Dropped(
                tag,
                "rating_missing",
                "expected numbers for all aspects of both answers",
            )
            continue
        if left.mean == right.mean:
            yield Dropped(tag, "tie", f"both rated {left.mean:g}")
            continue
        chosen, rejected = left, right
        scores = (left.mean, right.mean)
        if right.mean > left.mean:
            chosen, rejected = right, left
            scores = (right.mean, left.mean)
        yield Draft(
            messages,
            images,
            chosen.text,
            rejected.text,
            tag=tag,
            row_id=row.get("id"),
            scores=scores,
        )


def mean_rating(annotations: Any) -> float | None:
    """The mean rating over the aspects; None when one of them is not a finite number, such as "N/A"."""
    try:
        ratings = [float(annotations[aspect]["Rating"]) for aspect in ASPECTS]
    except (TypeError, KeyError, ValueError):
        return None
    mean = sum(ratings) / len(ratings)
    return mean if math.isfinite(mean) else None


def _answers(row: dict[str, Any]) -> list[dict[str, Any]]:
    completions = row.get("completions")
    if isinstance(completions, dict):
        columns = zip(
            completions["response"],
            completions["annotations"],
            strict=True,
        )
        completions = [
            {"response": response, "annotations": annotations}
            for response, annotations in columns
        ]
    if not isinstance(completions, list):
        raise Refused(
            "bad_row",
            f"expected completions, got {type(completions).__name__}; check the data set",
        )
    return completions


COLUMNS = ("img_path", "image", "prompt", "completions")

IMPORTER = Importer("vlfeedback", convert, "MMInstruction/VLFeedback", columns=COLUMNS)

"""VLFeedback: `{id, prompt, completions, img_path}`, a few answers per prompt, each rated on three aspects.

Every pair of answers is imported, better over worse by the mean rating, which becomes its scores. `completions` is
a list of dicts or, as `datasets` writes it, a dict of lists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from common.errors import Refused
from common.importers.base import Draft, Importer, images_field, question, text_field
from common.records import Dropped

ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")


def convert(row: dict[str, Any]) -> Iterator[Draft | Dropped]:
    """All pairs; Dropped `tie`, and `rating_missing` for a pair with an answer that has no three numbers."""
    images = images_field(row, "img_path")
    asked = question(text_field(row, "prompt"), len(images))
    rated = [
        (answer.get("response"), mean_rating(answer.get("annotations")))
        for answer in _answers(row)
    ]
    for (i, (left, left_mean)), (j, (right, right_mean)) in combinations(
        enumerate(rated), 2
    ):
        tag = f"{i}-{j}"
        if left_mean is None or right_mean is None:
            yield Dropped(
                tag,
                "rating_missing",
                "expected numbers for all aspects of both answers",
            )
        elif left_mean == right_mean:
            yield Dropped(tag, "tie", f"both rated {left_mean:g}")
        else:
            swap = right_mean > left_mean
            chosen, rejected = (right, left) if swap else (left, right)
            scores = (max(left_mean, right_mean), min(left_mean, right_mean))
            yield Draft(asked, images, chosen, rejected, tag, row.get("id"), scores)


def mean_rating(annotations: Any) -> float | None:
    """Mean over the aspects; None when one of them is no finite number ("N/A")."""
    try:
        ratings = [float(annotations[aspect]["Rating"]) for aspect in ASPECTS]
    except (TypeError, KeyError, ValueError):
        return None
    mean = sum(ratings) / len(ratings)
    return mean if math.isfinite(mean) else None


def _answers(row: dict[str, Any]) -> list[dict[str, Any]]:
    completions = row.get("completions")
    if isinstance(completions, dict):
        responses, annotations = completions["response"], completions["annotations"]
        completions = [
            {"response": response, "annotations": annotation}
            for response, annotation in zip(responses, annotations, strict=True)
        ]
    if not isinstance(completions, list):
        raise Refused(
            "bad_row",
            f"expected completions, got {type(completions).__name__}; check the data set",
        )
    return completions


IMPORTER = Importer("vlfeedback", convert, "MMInstruction/VLFeedback")

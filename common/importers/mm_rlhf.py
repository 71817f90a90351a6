"""MM-RLHF: JSON lines of `{prompt, chosen, rejected, image | video, …}`. Rows with a video are dropped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.importers.base import (
    Draft,
    Importer,
    images_field,
    question,
    text_field,
)


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """The pair of a row."""
    images = images_field(row, "image")
    text = text_field(row, "prompt")
    yield Draft(
        question(text, len(images)),
        images,
        row.get("chosen"),
        row.get("rejected"),
        row_id=row.get("id"),
    )


COLUMNS = ("image", "prompt", "chosen", "rejected")

IMPORTER = Importer("mm_rlhf", convert, "yifanzhang114/MM-RLHF", columns=COLUMNS)

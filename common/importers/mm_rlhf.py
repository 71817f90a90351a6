"""MM-RLHF: jsonl of `{prompt, chosen, rejected, image | video, …}`; video rows are dropped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.importers.base import (
    Draft,
    Importer,
    images_field,
    question,
    refuse_other_media,
    text_field,
)


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """One pair; Refused `video`."""
    refuse_other_media(row)
    images = images_field(row, "image")
    asked = question(text_field(row, "prompt"), len(images))
    yield Draft(
        asked, images, row.get("chosen"), row.get("rejected"), own_id=row.get("id")
    )


IMPORTER = Importer("mm_rlhf", convert, "yifanzhang114/MM-RLHF")

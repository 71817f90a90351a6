"""mDPO: JSON lines or one list of `{img_path, prompt, chosen, rejected}`. Vicuna's template is cut off a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.importers.base import Draft, Importer, images_field, question, text_field
from common.importers.conversations import strip_vicuna


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """The pair of a row; Refused `bad_template`."""
    images = images_field(row, "img_path")
    text = strip_vicuna(text_field(row, "prompt"))
    yield Draft(
        question(text, len(images)),
        images,
        row.get("chosen"),
        row.get("rejected"),
        row_id=row.get("id"),
    )


COLUMNS = ("img_path", "prompt", "chosen", "rejected")

IMPORTER = Importer("mdpo", convert, "fwnlp/mDPO-preference-data", columns=COLUMNS)

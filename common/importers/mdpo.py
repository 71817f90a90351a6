"""mDPO: `{img_path, prompt, chosen, rejected}`, lines or one list; the Vicuna template around a prompt is cut off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.importers.base import Draft, Importer, images_field, question, text_field
from common.importers.conversations import strip_vicuna


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """One pair; Refused `bad_template`."""
    images = images_field(row, "img_path")
    asked = question(strip_vicuna(text_field(row, "prompt")), len(images))
    yield Draft(
        asked, images, row.get("chosen"), row.get("rejected"), own_id=row.get("id")
    )


IMPORTER = Importer("mdpo", convert, "fwnlp/mDPO-preference-data")

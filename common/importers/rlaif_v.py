"""RLAIF-V: parquet shards of `{image: {bytes, path}, question, chosen, rejected, idx, …}`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.importers.base import Draft, Importer, images_field, question, text_field


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """The pair of a row."""
    images = images_field(row, "image")
    text = text_field(row, "question")
    yield Draft(
        question(text, len(images)),
        images,
        row.get("chosen"),
        row.get("rejected"),
        row_id=row.get("idx"),
    )


COLUMNS = ("idx", "image", "question", "chosen", "rejected")

IMPORTER = Importer("rlaif_v", convert, "openbmb/RLAIF-V-Dataset", columns=COLUMNS)

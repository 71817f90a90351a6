"""RLHF-V: parquet of `{image: {bytes, path}, text, idx, …}`; `text` is or spells a dict of the texts."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from typing import Any

from common.errors import Refused
from common.importers import rlaif_v
from common.importers.base import Draft, Importer, text_field

MAX_TEXT_CHARS = 400_000


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """The pair of a row."""
    text = row.get("text")
    if text is None and "question" in row:
        yield from rlaif_v.convert(row)
        return
    # The first releases have the dict itself.
    fields = (
        text_fields(text) if isinstance(text, dict) else parse(text_field(row, "text"))
    )
    yield from rlaif_v.convert({**row, **fields})


def parse(text: str) -> dict[str, Any]:
    """The question, chosen and rejected of a dict that a text spells, as JSON or as a Python literal.

    Nothing is evaluated. A field that is not there is None.

    Raises:
        Refused: `bad_row` when the text spells no dict.
    """
    if len(text) > MAX_TEXT_CHARS:
        raise Refused(
            "bad_row",
            f"expected a text of at most {MAX_TEXT_CHARS:,} characters, got more; drop the row",
        )
    fields: Any
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        try:
            fields = ast.literal_eval(text)
        except (
            ValueError,
            SyntaxError,
            TypeError,
            MemoryError,
            RecursionError,
        ) as error:
            raise Refused(
                "bad_row",
                f"expected a dict as text, got {text[:80]!r}; check the data set",
            ) from error
    if isinstance(fields, str) and len(fields) < len(text):
        # JSON within JSON.
        return parse(fields)
    if not isinstance(fields, dict):
        raise Refused(
            "bad_row",
            f"expected a dict as text, got {type(fields).__name__}; check the data set",
        )
    return text_fields(fields)


def text_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The question, chosen and rejected of a dict; a field that is not there is None."""
    return {key: fields.get(key) for key in ("question", "chosen", "rejected")}


COLUMNS = ("idx", "image", "text", "question", "chosen", "rejected")

IMPORTER = Importer(
    "rlhf_v", convert, "openbmb/RLHF-V-Dataset", licence="cc-by-nc-4.0", columns=COLUMNS
)

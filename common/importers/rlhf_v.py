"""RLHF-V: parquet of `{image: {bytes, path}, text, idx, …}`; `text` *spells* question, chosen, rejected."""

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
    """One pair."""
    yield from rlaif_v.convert({**row, **parse(text_field(row, "text"))})


def parse(text: str) -> dict[str, Any]:
    """The dict that a text spells, as JSON or as a Python literal; nothing is evaluated (Refused `bad_row`)."""
    if len(text) > MAX_TEXT_CHARS:
        raise Refused(
            "bad_row",
            f"expected a text of at most {MAX_TEXT_CHARS:,} characters, got more; drop the row",
        )
    found: Any
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text)
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
    if not isinstance(found, dict):
        raise Refused(
            "bad_row",
            f"expected a dict as text, got {type(found).__name__}; check the data set",
        )
    return {key: found.get(key) for key in ("question", "chosen", "rejected")}


IMPORTER = Importer("rlhf_v", convert, "openbmb/RLHF-V-Dataset", licence="cc-by-nc-4.0")

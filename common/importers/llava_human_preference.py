"""LLaVA-Human-Preference-10K: `{id, image, conversations, output_1, output_2, preference}`, preference 1 or 2.

`conversations` may end with an answer, which is one of the two outputs; the prompt is what comes before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.errors import Refused
from common.importers.base import Draft, Importer, images_field
from common.importers.conversations import answer_text, messages_of, read_turns


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """The pair of a row."""
    turns = read_turns(row.get("conversations"))
    if turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    preference = row.get("preference")
    if preference not in (1, 2) or isinstance(preference, bool):
        raise Refused(
            "bad_row",
            f"expected a preference of 1 or 2, got {str(preference)[:40]!r}; drop the row",
        )
    outputs = (answer_text(row["output_1"]), answer_text(row["output_2"]))
    chosen = outputs[preference - 1]
    rejected = outputs[2 - preference]
    yield Draft(
        messages_of(turns),
        images_field(row, "image"),
        chosen,
        rejected,
        row_id=row.get("id"),
    )


COLUMNS = ("image", "conversations", "output_1", "output_2", "preference")

IMPORTER = Importer(
    "llava_human_preference",
    convert,
    "zhiqings/LLaVA-Human-Preference-10K",
    columns=COLUMNS,
)

"""LLaMA-Factory's preference rows, in its sharegpt, OpenAI and Alpaca formats.

    conversations or messages   turns of from/value or role/content, the last one the user's
    instruction, input, history instead of turns (Alpaca)
    chosen, rejected            a turn, or its text
    images, system              optional

A row has as many `<image>` markers as images, or brings its images along as parts of a content.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.importers.base import (
    Draft,
    Importer,
    images_field,
    one_list,
)
from common.importers.conversations import (
    images_of_turns,
    messages_of,
    turns_of_row,
)


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """The pair of a row; Refused `role_unknown`."""
    turns = turns_of_row(row)
    column = images_field(row, "images") or images_field(row, "image")
    yield Draft(
        messages_of(turns),
        one_list(column, images_of_turns(turns)),
        row.get("chosen"),
        row.get("rejected"),
        row_id=row.get("id"),
    )


COLUMNS = (
    "messages",
    "conversations",
    "query",
    "instruction",
    "input",
    "history",
    "chosen",
    "rejected",
    "images",
    "system",
)

IMPORTER = Importer(
    "llama_factory", convert, "LLaMA-Factory sharegpt format", columns=COLUMNS
)

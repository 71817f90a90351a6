"""LLaVA-Instruct: a JSON list of `{id, image?, conversations}`. Makes prompts, one per answer of a conversation.

The answer is the prompt's reference, the turns before it are its messages. Rows without an image are dropped as
`image_none`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.importers.base import Draft, Importer, images_field
from common.importers.conversations import messages_of, read_turns


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """One prompt per answer."""
    turns = read_turns(row.get("conversations"))
    images = images_field(row, "image")
    for number, turn in enumerate(turns):
        if turn.role == "assistant":
            yield Draft(
                messages_of(turns[:number]),
                images,
                turn.text,
                tag=str(number),
                row_id=row.get("id"),
            )


COLUMNS = ("image", "conversations")

IMPORTER = Importer(
    "llava_instruct",
    convert,
    "liuhaotian/LLaVA-Instruct-150K",
    makes="prompts",
    columns=COLUMNS,
)

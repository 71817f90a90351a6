"""LLaVA-Instruct: JSON list of `{id, image?, conversations}`. Makes prompts: one per answer, which is its reference.

Earlier turns of a conversation are part of a prompt's messages. Text-only rows are dropped as `image_none`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.importers.base import Draft, Importer, images_field
from common.importers.conversations import messages_of, sharegpt_turns


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """One prompt per answer."""
    turns = sharegpt_turns(row.get("conversations"))
    images = images_field(row, "image")
    for number, turn in enumerate(turns):
        if turn.role == "assistant":
            yield Draft(
                messages_of(turns[:number]),
                images,
                turn.text,
                tag=str(number),
                own_id=row.get("id"),
            )


IMPORTER = Importer(
    "llava_instruct", convert, "liuhaotian/LLaVA-Instruct-150K", makes="prompts"
)

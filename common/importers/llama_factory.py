"""LLaMA-Factory's sharegpt preference rows: `{conversations, chosen: {from, value}, rejected, images, system?}`.

A row has as many `<image>` markers as images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.importers.base import Draft, Importer, images_field, refuse_other_media
from common.importers.conversations import (
    messages_of,
    sharegpt_turns,
    split_last_answer,
)


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """The pair of a row; Refused `role_unknown` (tools), `video`, `audio`."""
    refuse_other_media(row)
    turns = sharegpt_turns(row.get("conversations"))
    system = row.get("system")
    if system:
        turns = [*sharegpt_turns([{"from": "system", "value": system}]), *turns]
    _, chosen = split_last_answer(sharegpt_turns([row.get("chosen")]))
    _, rejected = split_last_answer(sharegpt_turns([row.get("rejected")]))
    yield Draft(
        messages_of(turns),
        images_field(row, "images"),
        chosen,
        rejected,
        row_id=row.get("id"),
    )


IMPORTER = Importer("llama_factory", convert, "LLaMA-Factory sharegpt format")

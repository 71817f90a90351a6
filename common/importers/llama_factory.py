"""LLaMA-Factory's sharegpt preference rows: `{conversations, chosen: {from, value}, rejected, images, system?}`.

There must be as many `<image>` markers as images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.importers.base import Draft, Importer, images_field, refuse_other_media
from common.importers.conversations import ends_with_answer, messages_of, sharegpt_turns


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """One pair; Refused `role_unknown` (tools), `video`, `audio`."""
    refuse_other_media(row)
    turns = sharegpt_turns(row.get("conversations"))
    if system := row.get("system"):
        turns = [*sharegpt_turns([{"from": "system", "value": system}]), *turns]
    (_, chosen), (_, rejected) = (
        ends_with_answer(sharegpt_turns([row.get(side)]))
        for side in ("chosen", "rejected")
    )
    yield Draft(
        messages_of(turns),
        images_field(row, "images"),
        chosen,
        rejected,
        own_id=row.get("id"),
    )


IMPORTER = Importer("llama_factory", convert, "LLaMA-Factory sharegpt format")

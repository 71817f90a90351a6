"""TRL's VLM preference rows: `{images | image, prompt, chosen, rejected}`; our own export comes back as it was.

Where a message's content is a plain text, the images stand before the first such user turn, as TRL puts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.data.trl_format import META, pair_of_meta, read_answer, read_messages
from common.importers.base import Draft, Importer, images_field


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """The pair of a row; Refused `bad_row`, `role_unknown`."""
    images = images_field(row, "images") or images_field(row, "image")
    messages = read_messages(row.get("prompt"), len(images))
    chosen = read_answer(row.get("chosen"))
    rejected = read_answer(row.get("rejected"))
    meta = row.get(META)
    exported = None
    if meta is not None:
        exported = pair_of_meta(meta, messages, chosen, rejected)
    yield Draft(messages, images, chosen, rejected, exported=exported)


IMPORTER = Importer(
    "trl", convert, "TRL VLM preference format", text_only=True, own_ids=True
)

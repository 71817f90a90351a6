"""ms-swift's preference rows: `{messages, rejected_response | rejected_messages, images, rejected_images?}`.

The last message is the chosen answer. Without any `<image>` marker, images stand before the first question, as
ms-swift puts them. The learner knows no rejected images: a row whose two sides have different ones is dropped as
`rejected_image`, whether or not its texts differ as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.errors import Refused
from common.importers.base import (
    Draft,
    Importer,
    images_field,
    refuse_other_media,
    with_images,
)
from common.importers.conversations import ends_with_answer, messages_of, openai_turns


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """One pair; Refused `rejected_image`, `prompt_differs`, `video`, `audio`."""
    refuse_other_media(row)
    images, rejected_images = (
        images_field(row, "images"),
        images_field(row, "rejected_images"),
    )
    if rejected_images and rejected_images != images:
        raise Refused(
            "rejected_image",
            "expected the same images on both sides, got others; the learner needs that",
        )
    asked, chosen = ends_with_answer(openai_turns(row.get("messages")))
    rejected = row.get("rejected_response")
    if row.get("rejected_messages"):
        asked_too, rejected = ends_with_answer(openai_turns(row["rejected_messages"]))
        if asked != asked_too:
            raise Refused(
                "prompt_differs",
                "expected one prompt for both answers, got two; drop the row",
            )
    yield Draft(
        with_images(messages_of(asked), len(images)),
        images,
        chosen,
        rejected,
        own_id=row.get("id"),
    )


IMPORTER = Importer("ms_swift", convert, "ms-swift custom data set format")

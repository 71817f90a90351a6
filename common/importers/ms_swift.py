"""ms-swift's preference rows: `{messages, rejected_response | rejected_messages, images, rejected_images?}`.

The last message is the chosen answer. Without any `<image>` marker, the images stand before the first question, as
ms-swift puts them. Both sides of a pair share the prompt's images, so a row with other images on the rejected side is
dropped as `rejected_image`, whether or not its texts differ as well.
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
from common.importers.conversations import messages_of, openai_turns, split_last_answer


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """The pair of a row; Refused `rejected_image`, `prompt_differs`, `video`, `audio`."""
    refuse_other_media(row)
    images = images_field(row, "images")
    rejected_images = images_field(row, "rejected_images")
    if rejected_images and rejected_images != images:
        raise Refused(
            "rejected_image",
            "expected the same images on both sides, got others; the learner needs that",
        )
    turns, chosen = split_last_answer(openai_turns(row.get("messages")))
    rejected = row.get("rejected_response")
    if row.get("rejected_messages"):
        rejected_turns, rejected = split_last_answer(
            openai_turns(row["rejected_messages"])
        )
        if turns != rejected_turns:
            raise Refused(
                "prompt_differs",
                "expected one prompt for both answers, got two; drop the row",
            )
    yield Draft(
        with_images(messages_of(turns), len(images)),
        images,
        chosen,
        rejected,
        row_id=row.get("id"),
    )


IMPORTER = Importer("ms_swift", convert, "ms-swift custom data set format")

"""POVID: JSON list of `{id, image, conversations, rejected_conversations}`; the last answers are chosen and rejected.

The published paths carry folders of their author's disk: a path is tried as it is, then as its bare file name (COCO's
are unique), both below the image root.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from common.errors import Refused
from common.importers.base import Draft, Importer
from common.importers.conversations import ends_with_answer, messages_of, sharegpt_turns


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """One pair; Refused `prompt_differs` when what comes before the two answers is not the same."""
    asked, chosen = ends_with_answer(sharegpt_turns(row.get("conversations")))
    asked_too, rejected = ends_with_answer(
        sharegpt_turns(row.get("rejected_conversations"))
    )
    if asked != asked_too:
        raise Refused(
            "prompt_differs",
            "expected one prompt for both answers, got two; drop the row",
        )
    image = row.get("image")
    images = (
        [(image, PurePosixPath(image).name) if isinstance(image, str) else image]
        if image
        else []
    )
    yield Draft(messages_of(asked), images, chosen, rejected, own_id=row.get("id"))


IMPORTER = Importer(
    "povid", convert, "YiyangAiLab/POVID_preference_data_for_VLLMs", licence="cc-by-4.0"
)

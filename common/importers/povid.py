"""POVID: a JSON list of `{id, image, conversations, rejected_conversations}`, whose last answers make the pair.

The published paths carry folders of their author's disk. A path is tried as it is, then as its bare file name (those of
COCO are unique), both below the image root. A path with `..` is refused at once; `--strip-prefix` cuts it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath, PureWindowsPath
from typing import Any

from common.errors import Refused
from common.importers.base import Draft, Importer
from common.importers.conversations import (
    messages_of,
    read_turns,
    split_last_answer,
)
from common.reading.encoded_images import is_encoded


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """The pair of a row; Refused `prompt_differs` when the turns before the two answers are not the same."""
    turns, chosen = split_last_answer(read_turns(row.get("conversations")))
    rejected_turns, rejected = split_last_answer(
        read_turns(row.get("rejected_conversations"))
    )
    if turns != rejected_turns:
        raise Refused(
            "prompt_differs",
            "expected one prompt for both answers, got two; drop the row",
        )
    image = row.get("image")
    images = [image] if image else []
    if image and isinstance(image, str) and not is_encoded(image):
        # The author's disk may have been one of Windows.
        name = PureWindowsPath(image).name if "\\" in image else PurePath(image).name
        images = [(image, name)]
    yield Draft(
        messages_of(turns),
        images,
        chosen,
        rejected,
        row_id=row.get("id"),
    )


COLUMNS = ("image", "conversations", "rejected_conversations")

IMPORTER = Importer(
    "povid",
    convert,
    "YiyangAiLab/POVID_preference_data_for_VLLMs",
    licence="cc-by-4.0",
    columns=COLUMNS,
)

"""HA-DPO on Visual Genome. Two files, told apart by their columns:

    pope_data.json   list of `{image_id, question, chosen, reject, correct}`; `correct` rows are dropped, the policy's
                     answer there was right
    desc_data.json   `{image_id: {chosen: […], rejected: […]}}` or a list of these with their `image_id`; the i-th
                     chosen goes with the i-th rejected, and DESCRIBE is asked, as the file holds no question

Images are `{image_id}.jpg` below the image root or its folders VG_100K and VG_100K_2.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from common.errors import Refused
from common.importers.base import Draft, Importer, list_field, question, text_field
from common.records import Dropped

DESCRIBE = "Describe this image in detail."


def convert(row: dict[str, Any]) -> Iterator[Draft | Dropped]:
    """One pair of a POPE row, several of a description; Dropped `already_correct`, `answer_unpaired`."""
    image_id = row.get("image_id")
    if not isinstance(image_id, str | int) or isinstance(image_id, bool):
        raise Refused(
            "bad_row",
            f"expected an image_id, got {type(image_id).__name__}; check the data set",
        )
    images = [
        tuple(f"{folder}{image_id}.jpg" for folder in ("", "VG_100K/", "VG_100K_2/"))
    ]
    if "question" not in row:
        yield from _descriptions(row, images, image_id)
    elif row.get("correct") is True:
        yield Dropped("", "already_correct", "the policy's own answer was right")
    else:
        asked = question(text_field(row, "question"), 1)
        yield Draft(
            asked, images, row.get("chosen"), row.get("reject"), own_id=image_id
        )


def _descriptions(
    row: dict[str, Any], images: list[Any], image_id: str | int
) -> Iterator[Draft | Dropped]:
    asked = question(DESCRIBE, 1)
    sides = zip_longest(list_field(row, "chosen"), list_field(row, "rejected"))
    for number, (chosen, rejected) in enumerate(sides):
        if chosen is None or rejected is None:
            yield Dropped(
                str(number),
                "answer_unpaired",
                "expected as many chosen as rejected descriptions",
            )
        else:
            yield Draft(asked, images, chosen, rejected, str(number), image_id)


IMPORTER = Importer("ha_dpo", convert, "juliozhao/hadpo-data", keyed=True)

"""HA-DPO on Visual Genome. Its two files are told apart by their columns:

    pope_data.json   a list of `{image_id, question, chosen, reject, correct}`. Rows that are `correct` are dropped: the
                     policy's own answer was right there.
    desc_data.json   `{image_id: {chosen: […], rejected: […]}}`, or a list of these with their `image_id`. The i-th
                     chosen goes with the i-th rejected. The file has no questions; `DESCRIBE` is asked.

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
    """One pair of a POPE row, several of a description row; Dropped `already_correct`, `answer_unpaired`."""
    image_id = row.get("image_id")
    # True and False are integers to Python.
    if not isinstance(image_id, str | int) or isinstance(image_id, bool):
        raise Refused(
            "bad_row",
            f"expected an image_id, got {type(image_id).__name__}; check the data set",
        )
    file = f"{image_id}.jpg"
    images = [(file, f"VG_100K/{file}", f"VG_100K_2/{file}")]
    if "question" not in row:
        yield from _description_pairs(row, images, image_id)
    elif row.get("correct") is True:
        yield Dropped("", "already_correct", "the policy's own answer was right")
    else:
        yield Draft(
            question(text_field(row, "question"), 1),
            images,
            row.get("chosen"),
            row.get("reject", row.get("rejected")),
            row_id=image_id,
        )


def _description_pairs(
    row: dict[str, Any],
    images: list[Any],
    image_id: str | int,
) -> Iterator[Draft | Dropped]:
    messages = question(DESCRIBE, 1)
    sides = zip_longest(list_field(row, "chosen"), list_field(row, "rejected"))
    for number, (chosen, rejected) in enumerate(sides):
        if chosen is None or rejected is None:
            yield Dropped(
                str(number),
                "answer_unpaired",
                "expected as many chosen as rejected descriptions",
            )
        else:
            yield Draft(
                messages,
                images,
                chosen,
                rejected,
                tag=str(number),
                row_id=image_id,
            )


COLUMNS = ("image_id", "question", "chosen", "rejected", "reject", "correct")

IMPORTER = Importer(
    "ha_dpo", convert, "juliozhao/hadpo-data", keyed=True, columns=COLUMNS
)

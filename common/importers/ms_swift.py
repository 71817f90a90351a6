"""ms-swift's preference rows: a conversation, and what was rejected.

    messages or conversations     turns of role/content or from/value; the last one is the chosen answer
    query, response, history, system    instead of turns
    rejected_response             a text, or several, which make a pair each
    rejected_messages             instead of it: the whole conversation with the rejected answer
    images, rejected_images       the latter has to be the same, where it is there

Without any `<image>` marker, the images stand before the first question, as ms-swift puts them. Both sides of a pair
share the prompt's images, so a row with other images on the rejected side is dropped as `rejected_image`, whether or
not its texts differ as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from common.errors import Refused
from common.importers.base import (
    Draft,
    Importer,
    images_field,
    one_list,
    with_images,
)
from common.importers.conversations import (
    Turn,
    answer_text,
    images_of_turns,
    messages_of,
    read_turns,
    split_last_answer,
    turns_of_row,
    with_system,
)

_PLACES = ("<ref-object>", "<bbox>", "<point>")


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """The pairs of a row; Refused `rejected_image`, `prompt_differs`, `objects`."""
    turns, chosen = _prompt_and_chosen(row)
    _refuse_objects(row, turns, chosen)
    column = images_field(row, "images") or images_field(row, "image")
    images = one_list(column, images_of_turns(turns))
    rejected_images = images_field(row, "rejected_images")
    if rejected_images and list(map(_path, rejected_images)) != list(
        map(_path, images)
    ):
        raise Refused(
            "rejected_image",
            "expected the same images on both sides, got others; the learner needs that",
        )
    rejected = row.get("rejected_response")
    if row.get("rejected_messages"):
        rejected_turns = with_system(
            read_turns(row["rejected_messages"]), row.get("system")
        )
        rejected_turns, rejected = split_last_answer(rejected_turns)
        if turns != rejected_turns:
            raise Refused(
                "prompt_differs",
                "expected one prompt for both answers, got two; drop the row",
            )
    several = isinstance(rejected, list)
    answers = rejected if isinstance(rejected, list) else [rejected]
    for number, answer in enumerate(answers):
        yield Draft(
            with_images(messages_of(turns), len(images)),
            images,
            chosen,
            answer,
            tag=str(number) if several else "",
            row_id=row.get("id"),
        )


def _prompt_and_chosen(row: dict[str, Any]) -> tuple[list[Turn], Any]:
    """The turns before the chosen answer, and that answer."""
    if row.get("messages") or row.get("conversations"):
        return split_last_answer(turns_of_row(row))
    return turns_of_row(row), answer_text(row.get("response"))


def _path(image: Any) -> Any:
    """The path of an image that is `{bytes: null, path}`; any other image as it is."""
    if isinstance(image, Mapping) and not image.get("bytes"):
        return image.get("path")
    return image


def _refuse_objects(row: dict[str, Any], turns: list[Turn], chosen: Any) -> None:
    """Refuse places of objects, which ms-swift fills in (Refused `objects`)."""
    texts = [turn.text for turn in turns] + [str(chosen)]
    for place in _PLACES if row.get("objects") else ():
        if any(place in text for text in texts):
            raise Refused(
                "objects",
                f"expected texts with their boxes, got {place} for one of `objects`; write them out",
            )


COLUMNS = (
    "messages",
    "conversations",
    "query",
    "instruction",
    "input",
    "history",
    "system",
    "response",
    "rejected_response",
    "rejected_messages",
    "images",
    "rejected_images",
)

IMPORTER = Importer(
    "ms_swift", convert, "ms-swift custom data set format", columns=COLUMNS
)

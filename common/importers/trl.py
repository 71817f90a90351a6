"""TRL's VLM preference rows: `{images | image, prompt, chosen, rejected}`; our own export comes back as it was.

A prompt may also be a plain text, or be what both answers begin with (TRL's implicit prompt). Where no content has
parts of type image, `<image>` at the beginning or the end of a line is the place of one; without any, the images stand
before the first user turn whose content is a plain text, as TRL puts them. Parts may bring their images along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from common.data.trl_format import META, pair_of_meta
from common.errors import Refused
from common.importers.base import (
    MARKER,
    Draft,
    Importer,
    images_field,
    message,
    one_list,
)
from common.importers.content_parts import ContentPart, read_content
from common.importers.conversations import role_of, spelled_out
from common.records import Message, Part


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """The pair of a row; Refused `bad_row`, `role_unknown`, `prompt_differs`, `image_count`."""
    prompt, chosen, rejected = _prompt_and_answers(row)
    column = images_field(row, "images") or images_field(row, "image")
    images = one_list(column, _images_of_parts(prompt))
    messages = read_messages(prompt, len(images))
    meta = row.get(META)
    exported = None
    if meta is not None:
        exported = pair_of_meta(meta, messages, chosen, rejected)
    yield Draft(messages, images, chosen, rejected, exported=exported)


def _prompt_and_answers(row: dict[str, Any]) -> tuple[Any, str | None, str | None]:
    """The prompt as the row has it, and the texts of both answers."""
    for side in ("chosen", "rejected"):
        if side not in row:
            fields = ", ".join(map(str, row))[:120]
            raise Refused(
                "bad_row",
                f"expected prompt, chosen and rejected, got the fields {fields}; check the data set",
            )
    before_chosen, chosen = _split_answer(spelled_out(row["chosen"]))
    before_rejected, rejected = _split_answer(spelled_out(row["rejected"]))
    if before_chosen != before_rejected:
        raise Refused(
            "prompt_differs",
            "expected one prompt for both answers, got two; drop the row",
        )
    prompt = spelled_out(row.get("prompt"))
    if prompt is None:
        if not before_chosen:
            raise Refused(
                "bad_row",
                "expected a prompt, or answers that are messages and begin with it, got neither; check the data set",
            )
        prompt = before_chosen
    elif before_chosen and read_messages(prompt, 0) != read_messages(before_chosen, 0):
        raise Refused(
            "prompt_differs",
            "expected the prompt alone before the answers, got other turns; drop the row",
        )
    system = row.get("system")
    if system:
        prompt = _with_system(_listed(prompt), system)
    return prompt, read_answer(chosen), read_answer(rejected)


def _with_system(items: list[Any], system: Any) -> list[Any]:
    """The messages behind a text for the system (Refused `bad_row` when they begin with another)."""
    first = {"role": "system", "content": system}
    messages = read_messages(items, 0)
    if not messages or messages[0].role != "system":
        return [first, *items]
    if messages[0] != _message(first):
        raise Refused(
            "bad_row", "expected one text for the system, got two; drop the row"
        )
    return items


def _split_answer(items: Any) -> tuple[list[Any], Any]:
    """The messages before the last one, and the last one; a plain text has none before it."""
    if isinstance(items, list):
        return items[:-1], items[-1:]
    return [], items


def _listed(items: Any) -> list[Any]:
    """The messages of a prompt; a plain text is a user's."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    if isinstance(items, Mapping):
        return [items]
    if not isinstance(items, list):
        raise Refused(
            "bad_row",
            f"expected a list of messages, got {type(items).__name__}; check the data set",
        )
    return items


def _images_of_parts(items: Any) -> list[Any]:
    """The images that the parts of a prompt's messages bring along."""
    images = []
    for item in _listed(items):
        for part in read_content(_content(item)):
            if part.image is not None:
                images.append(part.image)
    return images


def read_messages(items: Any, num_images: int) -> tuple[Message, ...]:
    """The messages of a prompt, with places for its images; see above where they stand.

    Raises:
        Refused: `bad_row`, `role_unknown`; `image_count` for `<image>` within a sentence.
    """
    messages = [_message(item) for item in _listed(items)]
    texts = [part.text for turn in messages for part in turn.parts]
    has_places = any(part.kind == "image" for turn in messages for part in turn.parts)
    if has_places or num_images == 0:
        return tuple(messages)
    if any(MARKER in text for text in texts):
        return tuple(_with_places(turn) for turn in messages)
    for number, item in enumerate(_listed(items)):
        turn = messages[number]
        if turn.role == "user" and isinstance(_content(item), str):
            places = [Part("image")] * num_images
            messages[number] = Message("user", (*places, *turn.parts))
            break
    return tuple(messages)


def _message(item: dict[str, Any]) -> Message:
    """A message as it is, its markers still in the text."""
    content = _content(item)
    role = role_of(item.get("role", item.get("from")))
    return Message(role, tuple(map(_part, read_content(content))))


def _content(item: Any) -> Any:
    """The content of a message of role and content, or from and value (Refused `bad_row` when it is none)."""
    if isinstance(item, Mapping):
        for key in ("content", "value"):
            if key in item:
                return item[key]
    raise Refused(
        "bad_row",
        f"expected messages of role and content, got {type(item).__name__} of another shape; check the data set",
    )


def _part(part: ContentPart) -> Part:
    return Part(part.kind, part.text)


def _with_places(turn: Message) -> Message:
    """The turn with image parts in place of its markers, which are a user's and stand at the ends of lines."""
    parts: list[Part] = []
    for part in turn.parts:
        num_standing = sum(map(_num_standing, part.text.split("\n")))
        is_misplaced = num_standing > 0 and turn.role != "user"
        if num_standing != part.text.count(MARKER) or is_misplaced:
            raise Refused(
                "image_count",
                "expected <image> at the beginning or the end of a user's line, got one elsewhere, where it may be a "
                "word; give parts of type image",
            )
        parts += message("user", part.text).parts if num_standing else [part]
    return Message(turn.role, tuple(parts))


def _num_standing(line: str) -> int:
    """How many markers stand at the beginning or the end of a line. Elsewhere, one may be a word."""
    pieces = line.split(MARKER)
    with_text = [number for number, piece in enumerate(pieces) if piece.strip()]
    if not with_text:
        return len(pieces) - 1
    num_behind = len(pieces) - 1 - with_text[-1]
    return with_text[0] + num_behind


def read_answer(items: Any) -> str | None:
    """The text of one assistant message, or a plain text as it is; None when there is no answer.

    Raises:
        Refused: `bad_row` when it is anything else.
    """
    if items is None or isinstance(items, str):
        return items
    if isinstance(items, Mapping):
        items = [items]
    turns = read_messages(items, 0)
    if not turns:
        return None
    parts = turns[0].parts
    is_text = all(part.kind == "text" for part in parts)
    if len(turns) > 1 or turns[0].role != "assistant" or not is_text:
        raise Refused(
            "bad_row",
            "expected one assistant message of text as an answer, got another; drop the row",
        )
    # A template renders the parts of a message one behind the other.
    return "".join(part.text for part in parts) if parts else None


COLUMNS = ("images", "image", "prompt", "chosen", "rejected", META)

IMPORTER = Importer(
    "trl",
    convert,
    "TRL VLM preference format",
    text_only=True,
    own_ids=True,
    columns=COLUMNS,
)

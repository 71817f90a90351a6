"""Conversations as published sets spell them: ShareGPT's from/value, OpenAI's role/content, single questions (Alpaca's
instruction and input, ms-swift's query) with a history, Vicuna's template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from common.errors import Refused
from common.importers.base import MARKER, message
from common.importers.content_parts import read_content
from common.records import Message

Role = Literal["system", "user", "assistant"]

_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
"""In lower case; files have Human and Assistant, too."""


class Turn(NamedTuple):
    """One turn of a conversation, with `<image>` markers in its text; `images` are those that it brings along."""

    role: Role
    text: str
    images: tuple[Any, ...] = ()


def read_turns(items: Any) -> list[Turn]:
    """The turns of `[{from, value}]` or `[{role, content}]`; contents may be lists of parts.

    Raises:
        Refused: `bad_row`, `role_unknown`; `video`, `audio` for parts of these kinds.
    """
    if not isinstance(items, list):
        raise Refused(
            "bad_row",
            f"expected a list of turns, got {type(items).__name__}; check the data set",
        )
    return [_read_turn(item) for item in items]


def turns_of_row(row: Mapping[str, Any]) -> list[Turn]:
    """The turns of a row: under `messages` or `conversations`, or its single question with what was said before it.

    Raises:
        Refused: as `read_turns`, and `bad_row` when the row has none of these.
    """
    for key in ("messages", "conversations"):
        if row.get(key):
            return read_turns(row[key])
    return single_question(row)


def single_question(row: Mapping[str, Any]) -> list[Turn]:
    """The turns of `{query | instruction, input?, history?}`, where history is a list of (question, answer).

    Raises:
        Refused: `bad_row` when there is no question, or the history has another shape.
    """
    asked = row.get("query") or row.get("instruction")
    if not isinstance(asked, str):
        raise Refused(
            "bad_row",
            "expected messages, conversations, query or instruction, "
            f"got the fields {', '.join(map(str, row))[:120]}; check the data set",
        )
    more = row.get("input")
    if isinstance(more, str) and more.strip():
        asked = f"{asked}\n{more}"
    turns: list[Turn] = []
    for exchange in row.get("history") or ():
        if not isinstance(exchange, list) or not all(
            isinstance(text, str) for text in exchange
        ):
            raise Refused(
                "bad_row",
                "expected a history of questions and answers, got another shape; check the data set",
            )
        earlier, answer = exchange
        turns += [Turn("user", earlier), Turn("assistant", answer)]
    return [*turns, Turn("user", asked)]


def images_of_turns(turns: list[Turn]) -> list[Any]:
    """The images that the turns bring along, in order."""
    return [image for turn in turns for image in turn.images]


def answer_text(value: Any) -> Any:
    """The text of an answer that is a turn of its own, or the value itself where it is none.

    Raises:
        Refused: `bad_row` when the turn is not an assistant's; as `read_turns`.
    """
    if isinstance(value, Mapping):
        return split_last_answer([_read_turn(value)])[1]
    return value


def split_last_answer(turns: list[Turn]) -> tuple[list[Turn], str]:
    """The turns before the last one, and the answer that the last one gives (Refused `bad_row` when it is none)."""
    if not turns or turns[-1].role != "assistant":
        raise Refused(
            "bad_row",
            "expected a conversation that ends with an answer, got another end; check the row",
        )
    return turns[:-1], turns[-1].text


def messages_of(turns: list[Turn]) -> tuple[Message, ...]:
    """The turns as messages, with image parts in place of `<image>` markers."""
    return tuple(message(turn.role, turn.text) for turn in turns)


def strip_vicuna(text: str) -> str:
    """The question inside `… USER: question ASSISTANT:`, or the whole text where there is no such template.

    Raises:
        Refused: `bad_template` when the template holds several turns.
    """
    body = text.rstrip()
    has_end = body.endswith("ASSISTANT:")
    if has_end:
        body = body.removesuffix("ASSISTANT:").rstrip()
    system, user, question = body.partition("USER:")
    system = system.strip()
    if user and (not system or system.startswith("A chat between")):
        body = question.lstrip()
    elif not has_end:
        return text
    if "ASSISTANT:" in body:
        raise Refused(
            "bad_template",
            "expected one question in the Vicuna template, got several turns; drop the row",
        )
    return body


def _read_turn(item: Any) -> Turn:
    role_key, content_key = "role", "content"
    if isinstance(item, Mapping) and "from" in item:
        role_key, content_key = "from", "value"
    if not isinstance(item, Mapping) or not isinstance(
        item.get(content_key), str | list
    ):
        raise Refused(
            "bad_row",
            "expected turns of from and value, or role and content, got another shape; check the data set",
        )
    role = item.get(role_key)
    if not isinstance(role, str) or role.lower() not in _ROLES:
        shown = role[:40] if isinstance(role, str) else type(role).__name__
        raise Refused(
            "role_unknown",
            f"expected a role of {', '.join(_ROLES)}, got {shown!r}; drop the row",
        )
    text = ""
    images = []
    for part in read_content(item[content_key]):
        if part.kind == "image":
            if _ROLES[role.lower()] == "assistant":
                raise Refused(
                    "bad_row",
                    "expected answers of text, got one with an image; drop the row",
                )
            text += MARKER
            if part.image is not None:
                images.append(part.image)
        else:
            text += part.text
    return Turn(_ROLES[role.lower()], text, tuple(images))

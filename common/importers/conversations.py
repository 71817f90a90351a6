"""Conversations as published sets spell them: ShareGPT's from/value, OpenAI's role/content, single questions (Alpaca's
instruction and input, ms-swift's query) with a history, Vicuna's template.
"""

from __future__ import annotations

import json
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
    "developer": "system",
}
"""In lower case; files have Human and Assistant, too."""
_QUESTION_KEYS = ("query", "instruction", "prompt", "question")


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
    items = spelled_out(items)
    if not isinstance(items, list):
        raise Refused(
            "bad_row",
            f"expected a list of turns, got {type(items).__name__}; check the data set",
        )
    return [_read_turn(item) for item in items]


def turns_of_row(row: Mapping[str, Any]) -> list[Turn]:
    """The turns of a row: under `messages` or `conversations`, or its single question with what was said before it.

    A text under `system` comes before them.

    Raises:
        Refused: as `read_turns`, and `bad_row` when the row has none of these, or has two of them that differ.
    """
    turns: list[Turn] = []
    for key in ("messages", "conversations"):
        if row.get(key):
            others, turns = turns, read_turns(row[key])
            if others and others != turns:
                raise Refused(
                    "bad_row",
                    "expected messages or conversations, got both, and they differ; drop the row",
                )
    return with_system(turns or single_question(row), row.get("system"))


def with_system(turns: list[Turn], system: Any) -> list[Turn]:
    """The turns behind a text for the system, if there is one (Refused `bad_row` when they begin with another)."""
    if not system:
        return turns
    first = _read_turn({"role": "system", "content": system})
    if not turns or turns[0].role != "system":
        return [first, *turns]
    if turns[0] != first:
        raise Refused(
            "bad_row", "expected one text for the system, got two; drop the row"
        )
    return turns


def single_question(row: Mapping[str, Any]) -> list[Turn]:
    """The turns of `{query | instruction | prompt | question, input?, history?}`.

    The history is a list of (question, answer), or of turns.

    Raises:
        Refused: `bad_row` when there is no question, or the history has another shape.
    """
    asked = next((row[key] for key in _QUESTION_KEYS if row.get(key)), None)
    if not isinstance(asked, str):
        raise Refused(
            "bad_row",
            f"expected messages, conversations, {', '.join(_QUESTION_KEYS)}, "
            f"got the fields {', '.join(map(str, row))[:120]}; check the data set",
        )
    more = row.get("input")
    if isinstance(more, str) and more.strip():
        asked = f"{asked}\n{more}"
    turns = _read_history(row.get("history") or [])
    return [*turns, Turn("user", asked)]


def _read_history(history: Any) -> list[Turn]:
    """The turns before a question."""
    if isinstance(history, list) and all(isinstance(item, Mapping) for item in history):
        return read_turns(history)
    turns: list[Turn] = []
    exchanges: list[Any] = history if isinstance(history, list) else [None]
    for exchange in exchanges:
        is_exchange = isinstance(exchange, list) and len(exchange) == 2
        if not is_exchange or not all(isinstance(text, str) for text in exchange):
            raise Refused(
                "bad_row",
                "expected a history of questions and answers, got another shape; check the data set",
            )
        earlier, answer = exchange
        turns += [Turn("user", earlier), Turn("assistant", answer)]
    return turns


def images_of_turns(turns: list[Turn]) -> list[Any]:
    """The images that the turns bring along, in order."""
    return [image for turn in turns for image in turn.images]


def answer_text(value: Any) -> Any:
    """The text of an answer that is a turn of its own or a list of one, or the value itself where it is neither.

    Raises:
        Refused: `bad_row` when the turn is not an assistant's, or there are several; as `read_turns`.
    """
    value = spelled_out(value)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not all(map(_is_turn, value)):
        return value
    if not value:
        return None
    before, text = split_last_answer(read_turns(value))
    if before:
        raise Refused(
            "bad_row",
            f"expected one turn as an answer, got {len(value)}; drop the row",
        )
    return text


def spelled_out(value: Any) -> Any:
    """The turn or the turns that a text spells as JSON; any other value, JSON or not, as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        spelled = json.loads(value)
    except (ValueError, RecursionError):
        return value
    turns = spelled if isinstance(spelled, list) else [spelled]
    return spelled if turns and all(map(_is_turn, turns)) else value


def _is_turn(value: Any) -> bool:
    """Whether a value has the fields of a turn."""
    if not isinstance(value, Mapping):
        return False
    return value.keys() >= {"role", "content"} or value.keys() >= {"from", "value"}


def role_of(name: Any) -> Role:
    """The role behind its name in a file (Refused `role_unknown`)."""
    if not isinstance(name, str) or name.lower() not in _ROLES:
        shown = name[:40] if isinstance(name, str) else type(name).__name__
        raise Refused(
            "role_unknown",
            f"expected a role of {', '.join(_ROLES)}, got {shown!r}; drop the row",
        )
    return _ROLES[name.lower()]


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
    role = role_of(item.get(role_key))
    text = ""
    images = []
    for part in read_content(item[content_key]):
        if part.kind == "image":
            if role == "assistant":
                raise Refused(
                    "bad_row",
                    "expected answers of text, got one with an image; drop the row",
                )
            text += MARKER
            if part.image is not None:
                images.append(part.image)
        else:
            text += part.text
    return Turn(role, text, tuple(images))

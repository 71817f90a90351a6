"""Conversations as published sets spell them: ShareGPT's from/value, OpenAI's role/content, Vicuna's template."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from common.errors import Refused
from common.importers.base import message
from common.records import Message

Role = Literal["system", "user", "assistant"]

_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


class Turn(NamedTuple):
    """One turn before its markers are read."""

    role: Role
    text: str


def sharegpt_turns(items: Any) -> list[Turn]:
    """Turns of `[{from, value}]` (Refused `bad_row`, `role_unknown`)."""
    return [_turn(item, "from", "value") for item in _listed(items)]


def openai_turns(items: Any) -> list[Turn]:
    """Turns of `[{role, content}]` with texts as content (Refused `bad_row`, `role_unknown`)."""
    return [_turn(item, "role", "content") for item in _listed(items)]


def ends_with_answer(turns: list[Turn]) -> tuple[list[Turn], str]:
    """The turns before the last answer, and that answer (Refused `bad_row` when the last turn is none)."""
    if not turns or turns[-1].role != "assistant":
        raise Refused(
            "bad_row",
            "expected a conversation that ends with an answer, got another end; check the row",
        )
    return turns[:-1], turns[-1].text


def messages_of(turns: list[Turn]) -> tuple[Message, ...]:
    """Messages with their `<image>` markers read."""
    return tuple(message(turn.role, turn.text) for turn in turns)


def strip_vicuna(text: str) -> str:
    """The question inside `… USER: question ASSISTANT:`, or the text itself where there is no such template.

    Refused `bad_template` when a conversation of several turns is baked in.
    """
    body = text.rstrip()
    if body.endswith("ASSISTANT:"):
        body = body[: -len("ASSISTANT:")].rstrip()
    head, user, rest = body.partition("USER:")
    if user and (not head.strip() or head.lstrip().startswith("A chat between")):
        body = rest.lstrip()
    elif body == text.rstrip():
        return text
    if "ASSISTANT:" in body:
        raise Refused(
            "bad_template",
            "expected one question in the Vicuna template, got several turns; drop the row",
        )
    return body


def _listed(items: Any) -> list[Any]:
    if not isinstance(items, list):
        raise Refused(
            "bad_row",
            f"expected a list of turns, got {type(items).__name__}; check the data set",
        )
    return items


def _turn(item: Any, role_key: str, text_key: str) -> Turn:
    if not isinstance(item, dict) or not isinstance(item.get(text_key), str):
        raise Refused(
            "bad_row",
            f"expected turns of {role_key} and {text_key}, got another shape; check the data set",
        )
    role = item.get(role_key)
    if not isinstance(role, str) or role not in _ROLES:
        shown = role[:40] if isinstance(role, str) else type(role).__name__
        raise Refused(
            "role_unknown",
            f"expected a role of {', '.join(_ROLES)}, got {shown!r}; drop the row",
        )
    return Turn(_ROLES[role], item[text_key])

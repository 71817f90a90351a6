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
    """One turn of a conversation, its `<image>` markers still in the text."""

    role: Role
    text: str


def sharegpt_turns(items: Any) -> list[Turn]:
    """The turns of `[{from, value}]` (Refused `bad_row`, `role_unknown`)."""
    return [_turn(item, "from", "value") for item in _listed(items)]


def openai_turns(items: Any) -> list[Turn]:
    """The turns of `[{role, content}]` with plain texts as content (Refused `bad_row`, `role_unknown`)."""
    return [_turn(item, "role", "content") for item in _listed(items)]


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

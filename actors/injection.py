"""POVID's first stage: a true answer rewritten into a hallucinated one (arXiv 2402.11411, section 3.1).

    row = prompt x error kind ─▶ injector ─▶ Injection: a pair (chosen = the true answer), or why there is none

`EndpointInjector` asks a language model with the prompts of `injection_templates/`, one per kind of error.
`RulesInjector` applies the shapes world's rules. Rows that are refused before anything is asked have the reasons
`no_reference`, `answer_too_long`, `question_too_long`, `no_image` and those of unreadable images; replies that are not
read have `endpoint_empty`, `cut_off` (at `max_tokens`) and those of `chat_endpoint`, the others `injection_reply`'s.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from actors.chat_endpoint import ChatEndpoint, EndpointError
from actors.injection_prompt import question_of, render_messages
from actors.injection_reply import read_reply
from common.errors import Refused
from common.images import read
from common.povid_config import ErrorKind, PovidConfig
from common.records import Dropped, PreferencePair, Prompt, Response
from common.seeding import derive_seed
from common.shapes.corrupter import corrupt

CAPTION_KINDS: tuple[ErrorKind, ...] = ("entity", "attribute", "relation")
_CAPTION_REQUEST = re.compile(
    r"\b(?:describe|description|caption|depict\w*|summar\w+)\b"
    r"|\bwhat (?:do|can) you see\b|\bwhat(?: i|')s in (?:the|this)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Row:
    """One unit of work; `id` is the prompt's, followed by the kind when every kind is made."""

    id: str
    prompt: Prompt
    kind: ErrorKind


@dataclass(frozen=True, slots=True)
class Injection:
    """What a row gave. `asked` says how the endpoint had part in it: not at all, by an earlier reply, by a new one, or
    by failing to give one that can be read."""

    id: str
    kind: ErrorKind | None
    result: PreferencePair | Dropped
    asked: Literal["no", "cache", "answered", "failed"] = "no"


class Injector(Protocol):
    """Turns rows into injections; a row that cannot be used comes back as Dropped, never as an exception."""

    async def __call__(self, row: Row) -> Injection: ...


def rows_of(prompt: Prompt, config: PovidConfig) -> list[Row]:
    """The prompt with one kind, drawn by seed and prompt id, or with every kind that suits it."""
    kinds = suited_kinds(prompt, config.kinds)
    if config.every_kind:
        return [Row(f"{prompt.id}/{kind}", prompt, kind) for kind in kinds]
    return [
        Row(
            prompt.id,
            prompt,
            kinds[derive_seed(config.seed, "povid/kind", prompt.id) % len(kinds)],
        )
    ]


def suited_kinds(prompt: Prompt, kinds: Sequence[ErrorKind]) -> tuple[ErrorKind, ...]:
    """As in the paper: captions get wrong entities, attributes and relations, all other questions wrong reasoning.

    What is a caption is read off the request's wording (ours). Where nothing of `kinds` suits, all of them are kept.
    """
    wanted = (
        CAPTION_KINDS
        if _CAPTION_REQUEST.search(question_of(prompt))
        else ("reasoning",)
    )
    return tuple(kind for kind in dict.fromkeys(kinds) if kind in wanted) or tuple(
        dict.fromkeys(kinds)
    )


class RulesInjector:
    """Errors by rule, for prompts whose truth is a scene of the shapes world or the answer to a question about one."""

    def __init__(self, config: PovidConfig) -> None:
        self._config = config

    async def __call__(self, row: Row) -> Injection:
        refused = await asyncio.to_thread(_refusal, row, self._config)
        return Injection(
            row.id,
            row.kind,
            refused or _result(row, corrupt(row.prompt, row.kind, self._config.seed)),
        )


class EndpointInjector:
    """Errors by a language model behind a chat endpoint."""

    def __init__(self, config: PovidConfig, endpoint: ChatEndpoint) -> None:
        assert config.endpoint is not None, "an endpoint injector needs an endpoint"
        self._config, self._endpoint, self._send_image = (
            config,
            endpoint,
            config.endpoint.send_image,
        )

    async def __call__(self, row: Row) -> Injection:
        refused = await asyncio.to_thread(_refusal, row, self._config)
        if refused is not None:
            return Injection(row.id, row.kind, refused)
        messages = await asyncio.to_thread(
            render_messages, row.prompt, row.kind, self._send_image
        )
        try:
            reply = await self._endpoint.ask(messages)
        except EndpointError as error:
            return Injection(
                row.id, row.kind, Dropped(row.id, error.reason, str(error)), "failed"
            )
        if reply.text.strip() and not reply.cut_off:
            answer = read_reply(
                row.id,
                reply.text,
                row.prompt.reference or "",
                self._config.max_length_ratio,
            )
            return Injection(
                row.id,
                row.kind,
                _result(row, answer),
                "cache" if reply.cached else "answered",
            )
        why = (
            ("cut_off", "the reply reached max_tokens")
            if reply.cut_off
            else ("endpoint_empty", "no text")
        )
        return Injection(
            row.id,
            row.kind,
            Dropped(row.id, *why),
            "cache" if reply.cached else "failed",
        )


def _refusal(row: Row, config: PovidConfig) -> Dropped | None:
    """Why a row is not worth asking about, None when it is."""
    answer, limit = row.prompt.reference, config.max_text_chars
    if answer is None or not answer.strip():
        return Dropped(row.id, "no_reference", "POVID needs a true answer to corrupt")
    for reason, length in (
        ("answer_too_long", len(answer)),
        ("question_too_long", len(question_of(row.prompt))),
    ):
        if length > limit:
            return Dropped(
                row.id, reason, f"expected at most {limit:,} characters, got {length:,}"
            )
    if not row.prompt.images:
        return Dropped(row.id, "no_image", "POVID needs an image to be wrong about")
    try:
        for ref in row.prompt.images:
            read(ref)
    except Refused as error:
        return Dropped(row.id, error.reason, str(error))
    return None


def _result(row: Row, answer: str | Dropped) -> PreferencePair | Dropped:
    if isinstance(answer, Dropped):
        return Dropped(row.id, answer.reason, answer.detail)
    assert row.prompt.reference is not None, (
        "rows without a true answer are refused before"
    )
    return PreferencePair(
        f"povid/{row.id}",
        row.prompt,
        Response(row.prompt.reference),
        Response(answer),
        source="povid",
    )

"""POVID's first stage: a true answer rewritten into a hallucinated one (arXiv 2402.11411, section 3.1).

    row = prompt x error kind ─▶ injector ─▶ Injection: a pair (chosen = the true answer), or why there is none

`EndpointInjector` asks a language model with the prompts of `injection_templates/`, one per kind of error; a world with
rules of its own brings another injector (actors/povid/worlds.py).

Rows are refused before anything is asked for the reasons `no_reference`, `answer_too_long`, `question_too_long`,
`no_image` and those of unreadable images. Replies are dropped as `endpoint_empty`, as `cut_off` (at `max_tokens`), for
the reasons of `chat_endpoint` when there is none, and for those of `injection_reply` when it cannot be used.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from actors.povid.prompt import render_messages
from actors.povid.reply import read_reply
from common.config.povid import ErrorKind, PovidConfig
from common.conversation import last_question_of, question_of
from common.data.images import read
from common.endpoint.chat_endpoint import ChatEndpoint
from common.endpoint.errors import EndpointError
from common.endpoint.reply_cache import ChatReply
from common.errors import Refused
from common.records import Dropped, PreferencePair, Prompt, Response
from common.seeding import derive_seed

CAPTION_KINDS: tuple[ErrorKind, ...] = ("entity", "attribute", "relation")
QUESTION_KINDS: tuple[ErrorKind, ...] = ("reasoning",)
_CAPTION_REQUEST = re.compile(
    r"\b(?:describe|description|caption|depict\w*|summar\w+)\b"
    r"|\bwhat (?:do|can) you see\b|\bwhat(?: i|')s (?:in|on) (?:the|this)\b",
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
    """The result of a row.

    Attributes:
        id: of the row.
        kind: of the error; None for rows that could not be read.
        result: the pair, or why there is none.
        asked: the endpoint was not asked (`no`), had replied before (`cache`), replied (`answered`), or gave no reply
            that can be read (`failed`).
    """

    id: str
    kind: ErrorKind | None
    result: PreferencePair | Dropped
    asked: Literal["no", "cache", "answered", "failed"] = "no"


class Injector(Protocol):
    """Turns rows into injections; a row that cannot be used comes back as Dropped, never as an exception."""

    async def __call__(self, row: Row) -> Injection: ...


def rows_of(
    prompt: Prompt,
    config: PovidConfig,
) -> list[Row]:
    """The prompt with one kind, drawn by seed and prompt id, or with every kind that suits it."""
    kinds = suited_kinds(prompt, config.kinds)
    if config.every_kind:
        return [Row(f"{prompt.id}/{kind}", prompt, kind) for kind in kinds]
    # By the prompt alone: the same kind whatever other prompts are in the set.
    draw = derive_seed(config.seed, "povid/kind", prompt.id)
    kind = kinds[draw % len(kinds)]
    return [Row(prompt.id, prompt, kind)]


def suited_kinds(
    prompt: Prompt,
    kinds: Sequence[ErrorKind],
) -> tuple[ErrorKind, ...]:
    """The kinds that suit a prompt, in their order; all of them if none does.

    As in the paper, captions get wrong entities, attributes and relations, all other questions wrong reasoning. A
    caption is recognised by the wording of the request (ours).
    """
    is_caption = _CAPTION_REQUEST.search(last_question_of(prompt)) is not None
    suited = CAPTION_KINDS if is_caption else QUESTION_KINDS
    distinct = list(dict.fromkeys(kinds))
    suiting = [kind for kind in distinct if kind in suited]
    return tuple(suiting or distinct)


class EndpointInjector:
    """Lets a language model behind a chat endpoint write the errors."""

    def __init__(
        self,
        config: PovidConfig,
        endpoint: ChatEndpoint,
    ) -> None:
        assert config.endpoint is not None, "an endpoint injector needs an endpoint"
        self._config = config
        self._endpoint = endpoint
        self._send_image = config.endpoint.send_image

    async def __call__(self, row: Row) -> Injection:
        # Image files are read in threads, which leaves the event loop to other rows.
        refused = await asyncio.to_thread(refusal, row, self._config)
        if refused is not None:
            return Injection(row.id, row.kind, refused)
        try:
            messages = await asyncio.to_thread(
                render_messages, row.prompt, row.kind, self._send_image
            )
        except Refused as error:
            # The picture was there a moment ago.
            dropped = Dropped(row.id, error.reason, str(error))
            return Injection(row.id, row.kind, dropped)
        try:
            reply = await self._endpoint.ask(messages)
        except EndpointError as error:
            dropped = Dropped(row.id, error.reason, str(error))
            return Injection(row.id, row.kind, dropped, "failed")
        return self._read(row, reply)

    def _read(
        self,
        row: Row,
        reply: ChatReply,
    ) -> Injection:
        unreadable = None
        # A reply that thinking has used up is empty as well; the limit is the reason.
        if reply.cut_off:
            unreadable = Dropped(row.id, "cut_off", "the reply reached max_tokens")
        elif not reply.text.strip():
            unreadable = Dropped(row.id, "endpoint_empty", "no text")
        if unreadable is not None:
            asked: Literal["cache", "failed"] = "cache" if reply.cached else "failed"
            return Injection(row.id, row.kind, unreadable, asked)
        answer = read_reply(
            row.id,
            reply.text,
            row.prompt.reference or "",
            self._config.max_length_ratio,
        )
        return Injection(
            row.id,
            row.kind,
            pair_of(row, answer),
            "cache" if reply.cached else "answered",
        )


def refusal(row: Row, config: PovidConfig) -> Dropped | None:
    """Why a row cannot be used, before anything is asked; None if it can. Reads the images."""
    answer = row.prompt.reference
    if answer is None or not answer.strip():
        return Dropped(row.id, "no_reference", "POVID needs a true answer to corrupt")
    # Counted before an image is read or a token paid for.
    lengths = {
        "answer_too_long": len(answer),
        "question_too_long": len(question_of(row.prompt)),
    }
    limit = config.max_text_chars
    for reason, length in lengths.items():
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


def pair_of(
    row: Row,
    answer: str | Dropped,
) -> PreferencePair | Dropped:
    """The pair of the row's true answer and a hallucinated one, or why there is none, under the row's id."""
    if isinstance(answer, Dropped):
        return Dropped(row.id, answer.reason, answer.detail)
    reference = row.prompt.reference
    assert reference is not None, "rows without a true answer are refused before"
    if answer == reference:
        return Dropped(
            row.id, "pair_identical", f"the error changed nothing in {answer!r:.100}"
        )
    return PreferencePair(
        f"povid/{row.id}",
        row.prompt,
        Response(reference),
        Response(answer),
        source="povid",
    )

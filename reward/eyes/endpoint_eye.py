"""An eye behind any server that speaks OpenAI's protocol: images inlined, budget and circuit breaker before it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import config
from common.endpoint.chat_endpoint import ChatEndpoint
from common.endpoint.errors import EndpointError
from common.endpoint.messages import chat_messages
from common.endpoint.reply_cache import ChatReply
from common.errors import Halted, Refused
from common.gathering import gather_whole
from common.protocols import JudgeError, Question, Reply
from common.records import Dropped

NUM_CANDIDATES = 20
"""Log-probs that are asked for at a place; servers give at most so many."""
SHORT_REPLY = 16
"""Tokens of a reply of which the first word is the answer."""
_ABOUT_THE_REQUEST = "endpoint_refused"
_ABOUT_THE_ACCOUNT = "endpoint_denied"


class EndpointEye:
    """Implements `common.protocols.Eye`.

    Args:
        replies: a file that keeps what was paid for; a resumed run reads it and counts it. None keeps nothing.
        num_spenders: workers that share the budget.
        key: the settings' place in the config, for messages.

    Raises:
        UserError: the API key's environment variable is named but not set.
    """

    name = "endpoint"

    def __init__(
        self,
        settings: config.EndpointEye,
        replies: Path | None = None,
        num_spenders: int = 1,
        key: str = "reward.judge",
    ) -> None:
        self._key = key
        self._model = settings.model
        self._limit_key = settings.max_tokens_key
        self._endpoint = ChatEndpoint(
            settings,
            replies,
            settings.budget.share(num_spenders),
            settings.breaker,
            key,
        )
        self._places = asyncio.Semaphore(settings.concurrency)
        # Some servers refuse to tell log-probs; then texts are asked for.
        self._tells_logprobs = True

    async def ask(
        self,
        questions: Sequence[Question],
    ) -> list[Reply | Dropped]:
        """One reply per question, in order.

        Returns:
            Dropped for a question whose image cannot be read or that the server refuses.

        Raises:
            JudgeError: after its retries the server has no reply for one of them.
            Halted: the budget is used up, or the server denies us: key, credit, address or model are wrong.
        """
        # All are waited for: replies that others get are paid for, and kept.
        return await gather_whole(map(self._ask, questions))

    def usage(self) -> dict[str, Any]:
        """Replies, tokens, and what they cost if both prices are known."""
        return self._endpoint.usage()

    async def close(self) -> None:
        """Close connections and files."""
        await self._endpoint.close()

    async def _ask(
        self,
        question: Question,
    ) -> Reply | Dropped:
        async with self._places:
            try:
                # In a thread: it reads image files, which would hold up the event loop.
                messages = await asyncio.to_thread(chat_messages, question.prompt)
                return await self._reply(question, messages)
            except Refused as error:
                return Dropped(question.prompt.id, error.reason, str(error))
            except EndpointError as error:
                return self._final(question, error)

    async def _reply(
        self,
        question: Question,
        messages: Sequence[Mapping[str, Any]],
    ) -> Reply:
        if not question.options:
            limit = {self._limit_key: question.max_tokens}
            reply = await self._endpoint.ask(messages, **limit)
            return Reply(text=reply.text)
        limit = {self._limit_key: SHORT_REPLY}
        if self._tells_logprobs:
            try:
                reply = await self._endpoint.ask(
                    messages, logprobs=True, top_logprobs=NUM_CANDIDATES, **limit
                )
                return _choice_of(reply, question.options)
            except EndpointError as error:
                if error.reason != _ABOUT_THE_REQUEST:
                    raise
        reply = await self._endpoint.ask(messages, **limit)
        # It was the log-probs that the server refused.
        self._tells_logprobs = False
        return Reply(text=reply.text)

    def _final(
        self,
        question: Question,
        error: EndpointError,
    ) -> Dropped:
        """What an error means for a judge: never mind this question, never mind for now, or nothing goes any more."""
        if error.reason == _ABOUT_THE_REQUEST:
            return Dropped(question.prompt.id, error.reason, str(error))
        if error.reason == _ABOUT_THE_ACCOUNT:
            raise Halted(
                f"{self._key}: expected a server that lets us ask its model {self._model!r}, got: {error}; correct "
                "address, model, key or credit and continue with --resume"
            ) from error
        raise JudgeError(f"{error.reason}: {error}") from error


def _choice_of(
    reply: ChatReply,
    options: Sequence[str],
) -> Reply:
    """Log-probs of the options by the reply's first word; none when no option is among the candidates.

    Candidates that differ from an option in case and white space only stand for it, together.
    """
    masses = [0.0] * len(options)
    for token, logprob in reply.first_word.items():
        word = token.strip(" \n▁").casefold()
        for index, option in enumerate(options):
            if word == option.casefold():
                masses[index] += math.exp(logprob)
    if not any(masses):
        return Reply(text=reply.text)
    logprobs: list[float] = []
    for mass in masses:
        logprobs.append(math.log(mass) if mass > 0 else -math.inf)
    return Reply(reply.text, tuple(logprobs))

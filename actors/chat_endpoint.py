"""A chat endpoint that speaks OpenAI's protocol, asked so that nothing is paid for twice and no failure is fatal.

    ask ─▶ known? being asked? ─▶ request ─▶ 429, 5xx, silence: wait, again ─▶ reply, on disk before it is used

What fails for good is an EndpointError with one of these reasons: `endpoint_rate_limited`, `endpoint_error` (5xx, 408,
409), `endpoint_denied` (401 to 404: key, credit, address or model), `endpoint_refused` (other 4xx), `endpoint_garbage`
(no chat completion), `endpoint_unreachable`, `endpoint_timeout`.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    wait_random_exponential,
)

from actors.reply_cache import Reply, ReplyCache
from common.errors import UserError
from common.povid_config import EndpointConfig

BACKOFF_S = 0.5
"""Upper end of the random pause before the first retry; doubles with each, up to `MAX_BACKOFF_S`."""
MAX_BACKOFF_S = 30.0
MAX_RETRY_AFTER_S = 120.0
"""An endpoint that asks for a longer pause than this gets this one."""
CONNECT_TIMEOUT_S = 10.0
ATTEMPTS_BEFORE_FIRST_ANSWER = {"endpoint_unreachable": 2, "endpoint_timeout": 1}
"""An endpoint that has never answered is most likely not there: no long back-off to find out."""
DEFAULT_KEY = "OPENAI_API_KEY"
DETAIL_CHARS = 200
MAX_TOKENS = 1 << 40
"""More than this is no token count."""


class EndpointError(RuntimeError):
    """No reply. `reason` is the counted key; `retry_after_s` is the pause that the endpoint asked for."""

    def __init__(
        self,
        reason: str,
        message: str,
        retryable: bool = False,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.reason, self.retryable, self.retry_after_s = (
            reason,
            retryable,
            retry_after_s,
        )


class ChatEndpoint:
    """Asks with retries and a cache; an async context manager.

    Raises:
        UserError: the environment variable of the API key is named but not set, or holds what cannot be a key.
    """

    def __init__(self, config: EndpointConfig, cache: Path) -> None:
        self._config = config
        self._key = _key_of(config)
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=openai.Timeout(
                config.timeout_s, connect=min(CONNECT_TIMEOUT_S, config.timeout_s)
            ),
        )
        self._cache = ReplyCache(cache)
        self._pending: dict[str, asyncio.Task[Reply]] = {}
        self._backoff = wait_random_exponential(multiplier=BACKOFF_S, max=MAX_BACKOFF_S)
        self.answered = False
        """Whether anything, be it an error, ever came back."""

    async def __aenter__(self) -> ChatEndpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        pending = list(self._pending.values())
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._client.close()
        self._cache.close()

    def usage(self) -> dict[str, Any]:
        """Tokens of every reply ever paid for in this cache, and their cost where both prices are known."""
        replies, config = self._cache.replies.values(), self._config
        tokens_in = sum(reply.prompt_tokens or 0 for reply in replies)
        tokens_out = sum(reply.completion_tokens or 0 for reply in replies)
        cost = None
        if config.price_in is not None and config.price_out is not None:
            cost = (tokens_in * config.price_in + tokens_out * config.price_out) / 1e6
        return {
            "num_replies": len(replies),
            "num_replies_without_usage": sum(
                reply.prompt_tokens is None for reply in replies
            ),
            "num_prompt_tokens": tokens_in,
            "num_completion_tokens": tokens_out,
            "cost": cost,
        }

    async def ask(self, messages: Sequence[Mapping[str, Any]]) -> Reply:
        """The model's reply to OpenAI messages (EndpointError when there is none). Equal questions share a reply."""
        config = self._config
        request = {
            "model": config.model,
            "messages": list(messages),
            "temperature": config.temperature,
            "top_p": config.top_p,
            config.max_tokens_key: config.max_tokens,
        }
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        if key in self._cache.replies:
            return self._cache.replies[key]
        if key in self._pending:
            return replace(await asyncio.shield(self._pending[key]), cached=True)
        task = self._pending[key] = asyncio.create_task(self._fetch(key, request))
        task.add_done_callback(lambda _: self._forget(key))
        return await asyncio.shield(task)

    def _forget(self, key: str) -> None:
        task = self._pending.pop(key)
        if not task.cancelled():
            task.exception()  # read here: whoever asked may be cancelled, and asyncio would print a traceback

    async def _fetch(self, key: str, request: dict[str, Any]) -> Reply:
        attempts = AsyncRetrying(
            stop=self._give_up,
            wait=self._pause,
            retry=retry_if_exception(
                lambda error: isinstance(error, EndpointError) and error.retryable
            ),
            reraise=True,
        )
        reply: Reply = await attempts(self._request, request)
        self._cache.put(key, reply)
        return reply

    def _give_up(self, state: RetryCallState) -> bool:
        reason = getattr(_error_of(state), "reason", "")
        limit = self._config.max_retries + 1
        if not self.answered:
            limit = min(limit, ATTEMPTS_BEFORE_FIRST_ANSWER.get(reason, limit))
        return state.attempt_number >= limit

    def _pause(self, state: RetryCallState) -> float:
        asked = getattr(_error_of(state), "retry_after_s", 0.0)
        return max(self._backoff(state), min(asked, MAX_RETRY_AFTER_S))

    async def _request(self, request: dict[str, Any]) -> Reply:
        try:
            async with asyncio.timeout(self._config.timeout_s):
                raw = await self._client.chat.completions.with_raw_response.create(
                    **request
                )
        except (TimeoutError, openai.APITimeoutError) as error:
            message = f"no whole answer within {self._config.timeout_s:g} s"
            raise EndpointError("endpoint_timeout", message, retryable=True) from error
        except openai.APIStatusError as error:
            self.answered = True
            raise self._status_error(error) from error
        except openai.APIConnectionError as error:
            message = self._clean(str(error.__cause__ or error))
            raise EndpointError(
                "endpoint_unreachable", message, retryable=True
            ) from error
        self.answered = True
        return self._read(raw.http_response.text)

    def _status_error(self, error: openai.APIStatusError) -> EndpointError:
        status, message = error.status_code, self._clean(str(error))
        if status == 429:
            wait = retry_after_s(error.response.headers.get("retry-after"))
            return EndpointError("endpoint_rate_limited", message, True, wait)
        if status >= 500 or status in (408, 409):
            wait = retry_after_s(error.response.headers.get("retry-after"))
            return EndpointError("endpoint_error", message, True, wait)
        return EndpointError(
            "endpoint_denied" if 401 <= status <= 404 else "endpoint_refused", message
        )

    def _read(self, body: str) -> Reply:
        """The reply in a response body; whatever is not a chat completion is garbage, JSON or not."""
        try:
            data = json.loads(body)
            choice = data["choices"][0]
            text = choice["message"]["content"] or ""
            text.encode()  # half of a surrogate pair is valid JSON and no text
            usage = data.get("usage") or {}
            tokens = [
                usage.get(name) for name in ("prompt_tokens", "completion_tokens")
            ]
        except (
            ValueError,
            RecursionError,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:
            raise EndpointError(
                "endpoint_garbage", f"no chat completion: {self._clean(body)!r}"
            ) from error
        tokens_in, tokens_out = (
            n if isinstance(n, int) and 0 <= n < MAX_TOKENS else None for n in tokens
        )
        return Reply(
            self._without_key(text),
            choice.get("finish_reason") == "length",
            tokens_in,
            tokens_out,
        )

    def _without_key(self, text: str) -> str:
        """An endpoint may echo the key; it must not get into files or messages."""
        return text.replace(self._key, "[api key]") if self._key else text

    def _clean(self, message: str) -> str:
        """One short line that a terminal can be given."""
        line = " ".join(self._without_key(message)[:DETAIL_CHARS].split())
        return "".join(letter if letter.isprintable() else "?" for letter in line)


def _error_of(state: RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()


def _key_of(config: EndpointConfig) -> str | None:
    name = config.api_key_env or DEFAULT_KEY
    key = os.environ.get(name, "").strip()
    if not key and config.api_key_env is not None:
        raise UserError(
            f"--api-key-env: expected an API key in the environment variable {name}, got none; set it"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"{name}: expected an API key of printable ASCII, got other characters; set it again"
        )
    return key or None


def retry_after_s(header: str | None) -> float:
    """Seconds of a Retry-After header, a number or an HTTP date; 0 without one."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (
                email.utils.parsedate_to_datetime(header).timestamp() - time.time()
            )
        except (ValueError, OverflowError):
            return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0

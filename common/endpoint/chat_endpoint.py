"""A client of chat endpoints that speak OpenAI's protocol. No reply is paid for twice and no failure is fatal.

    ask ─▶ in the cache? being asked? ─▶ request ─▶ 429, 5xx, silence: wait, again ─▶ reply, on disk before it is used

When the last retry fails, an EndpointError names one of these reasons: `endpoint_rate_limited`, `endpoint_error` (5xx,
408, 409), `endpoint_denied` (401 to 404: key, credit, address or model), `endpoint_refused` (other 4xx),
`endpoint_garbage` (no chat completion), `endpoint_unreachable`, `endpoint_timeout`, `endpoint_down` (given up by the
circuit breaker).
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
from functools import partial
from pathlib import Path
from typing import Any

import openai
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    wait_random_exponential,
)

from common.config.eyes import Budget, CircuitBreaker, Endpoint
from common.endpoint.circuit import Circuit
from common.endpoint.errors import EndpointError
from common.endpoint.reply_cache import ChatReply, ReplyCache
from common.endpoint.spending import Spending
from common.errors import UserError

BACKOFF_S = 0.5
"""Upper end of the random pause before the first retry. It doubles with every retry, up to `MAX_BACKOFF_S`."""
MAX_BACKOFF_S = 30.0
MAX_RETRY_AFTER_S = 120.0
"""Longest pause that an endpoint can ask for."""
CONNECT_TIMEOUT_S = 10.0
ATTEMPTS_BEFORE_FIRST_ANSWER = {"endpoint_unreachable": 2, "endpoint_timeout": 1}
"""An endpoint that has never answered is probably not there, so fewer retries find out sooner."""
DEFAULT_KEY = "OPENAI_API_KEY"
DETAIL_CHARS = 200
MAX_TOKENS = 1 << 40
"""A count above this is an endpoint's mistake and is ignored."""


class ChatEndpoint:
    """Asks with retries and a cache. Use it as an async context manager, or close it.

    Args:
        cache: a file of replies, which the next start reads; None keeps them in memory alone.
        budget: what may be spent; Halted when it is used up.
        breaker: when to leave the endpoint alone; None never does.
        key: the settings' place in the config, for messages.

    Raises:
        UserError: the environment variable of the API key is named but not set, or holds what cannot be a key.
    """

    def __init__(
        self,
        config: Endpoint,
        cache: Path | None,
        budget: Budget | None = None,
        breaker: CircuitBreaker | None = None,
        key: str = "povid.endpoint",
    ) -> None:
        self._config = config
        self._key = key_of(config, key)
        connect_s = min(CONNECT_TIMEOUT_S, config.timeout_s)
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url,
            # The client refuses to start without any key, which local servers do not need.
            api_key=self._key or "none",
            # Retries are ours: the client's know neither the cache nor a silent endpoint.
            max_retries=0,
            timeout=openai.Timeout(config.timeout_s, connect=connect_s),
        )
        self._cache = ReplyCache(cache)
        self._spending = Spending(
            config, budget or Budget(), self._cache.replies.values(), f"{key}.budget"
        )
        self._circuit = None if breaker is None else Circuit(breaker)
        # Requests under way, by the same key as the cache.
        self._pending: dict[str, asyncio.Task[ChatReply]] = {}
        self._backoff = wait_random_exponential(multiplier=BACKOFF_S, max=MAX_BACKOFF_S)
        self.answered = False
        """Whether the endpoint ever answered, even with an error."""

    async def __aenter__(self) -> ChatEndpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what is under way and close connections and cache."""
        pending = list(self._pending.values())
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._client.close()
        self._cache.close()

    def usage(self) -> dict[str, Any]:
        """Tokens of all replies in this cache, and their cost if both prices are known."""
        return self._spending.usage()

    async def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        **changes: Any,
    ) -> ChatReply:
        """The model's reply to OpenAI messages. Equal questions share a reply.

        Args:
            messages: the conversation.
            changes: fields of the request that are added or replaced, such as `logprobs`.

        Raises:
            EndpointError: there is no reply, after all retries.
            Halted: the budget is used up.
        """
        config = self._config
        request = {
            "model": config.model,
            "messages": list(messages),
            "temperature": config.temperature,
            "top_p": config.top_p,
            # Newer models of OpenAI know max_completion_tokens only.
            config.max_tokens_key: config.max_tokens,
            **changes,
        }
        canonical = json.dumps(request, sort_keys=True)
        key = hashlib.sha256(canonical.encode()).hexdigest()
        if key in self._cache.replies:
            return self._cache.replies[key]
        # A caller that is cancelled must not cancel a request that others wait for and that is paid for.
        if key in self._pending:
            reply = await asyncio.shield(self._pending[key])
            return replace(reply, cached=True)
        task = asyncio.create_task(self._fetch(key, request))
        self._pending[key] = task
        task.add_done_callback(lambda _: self._forget(key))
        return await asyncio.shield(task)

    @property
    def num_pending(self) -> int:
        """Requests that are under way."""
        return len(self._pending)

    def _forget(self, key: str) -> None:
        task = self._pending.pop(key)
        if not task.cancelled():
            # All callers may be cancelled, and asyncio prints a traceback for an exception that nobody has read.
            task.exception()

    async def _fetch(
        self,
        key: str,
        request: dict[str, Any],
    ) -> ChatReply:
        attempts = AsyncRetrying(
            stop=self._give_up,
            wait=self._pause,
            retry=retry_if_exception(_is_retryable),
            reraise=True,
        )
        reply: ChatReply = await attempts(self._guarded, request)
        self._spending.add(reply)
        self._cache.put(key, reply)
        return reply

    def _give_up(self, state: RetryCallState) -> bool:
        reason = getattr(_error_of(state), "reason", "")
        limit = self._config.max_retries + 1
        if not self.answered:
            limit = min(limit, ATTEMPTS_BEFORE_FIRST_ANSWER.get(reason, limit))
        return state.attempt_number >= limit

    def _pause(self, state: RetryCallState) -> float:
        asked_s = getattr(_error_of(state), "retry_after_s", 0.0)
        return max(self._backoff(state), min(asked_s, MAX_RETRY_AFTER_S))

    async def _guarded(self, request: dict[str, Any]) -> ChatReply:
        """Send the request when circuit and budget let it through."""
        if self._circuit is None:
            return await self._request(request)
        return await self._circuit.run(partial(self._request, request))

    async def _request(
        self,
        request: dict[str, Any],
    ) -> ChatReply:
        self._spending.begin_call()
        try:
            async with asyncio.timeout(self._config.timeout_s):
                completions = self._client.chat.completions.with_raw_response
                response = await completions.create(**request)
        except (TimeoutError, openai.APITimeoutError) as error:
            message = f"no whole answer within {self._config.timeout_s:g} s"
            raise EndpointError("endpoint_timeout", message, retryable=True) from error
        except openai.APIStatusError as error:
            self.answered = True
            raise self._status_error(error) from error
        except openai.APIConnectionError as error:
            # The cause has the address; the client says "Connection error." only.
            cause = error.__cause__ or error
            message = self._clean(str(cause))
            raise EndpointError(
                "endpoint_unreachable", message, retryable=True
            ) from error
        self.answered = True
        return self._read(response.http_response.text)

    def _status_error(self, error: openai.APIStatusError) -> EndpointError:
        status = error.status_code
        message = self._clean(str(error))
        pause_s = retry_after_s(error.response.headers.get("retry-after"))
        if status == 429:
            return EndpointError("endpoint_rate_limited", message, True, pause_s)
        if status >= 500 or status in (408, 409):
            return EndpointError("endpoint_error", message, True, pause_s)
        if 401 <= status <= 404:
            return EndpointError("endpoint_denied", message)
        return EndpointError("endpoint_refused", message)

    def _read(self, body: str) -> ChatReply:
        """The reply in a response body. A body that is no chat completion, JSON or not, is an `endpoint_garbage`."""
        try:
            data = json.loads(body)
            choice = data["choices"][0]
            text = choice["message"]["content"] or ""
            # Half of a surrogate pair is valid JSON and cannot be encoded.
            text.encode()
            is_cut_off = choice.get("finish_reason") == "length"
            usage = data.get("usage") or {}
            return ChatReply(
                self._without_key(text),
                is_cut_off,
                _token_count(usage.get("prompt_tokens")),
                _token_count(usage.get("completion_tokens")),
                _first_word(choice.get("logprobs")),
            )
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

    def _without_key(self, text: str) -> str:
        """Blot out the key, which an endpoint may echo, before the text gets into files or messages."""
        if not self._key:
            return text
        return text.replace(self._key, "[api key]")

    def _clean(self, message: str) -> str:
        """One short line without control characters, safe to print on a terminal."""
        shortened = self._without_key(message)[:DETAIL_CHARS]
        line = " ".join(shortened.split())
        letters = [letter if letter.isprintable() else "?" for letter in line]
        return "".join(letters)


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, EndpointError) and error.retryable


def _error_of(state: RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()


def _token_count(value: object) -> int | None:
    """The endpoint's own count, or None if it is no plausible number."""
    if isinstance(value, int) and 0 <= value < MAX_TOKENS:
        return value
    return None


def _first_word(logprobs: Any) -> dict[str, float]:
    """Log-probs (nats) of what the reply's first word may be, by token text; {} where the endpoint tells none.

    Tokens of white space come before it with some tokenizers (Llama's "▁").
    """
    if not logprobs:
        return {}
    for place in logprobs["content"] or ():
        if not place["token"].strip(" \n▁"):
            continue
        candidates: dict[str, float] = {}
        for candidate in place["top_logprobs"]:
            candidates[str(candidate["token"])] = float(candidate["logprob"])
        return candidates
    return {}


def key_of(config: Endpoint, place: str) -> str | None:
    """The API key, from the environment; `place` is the settings' in the config (UserError as `ChatEndpoint`)."""
    name = config.api_key_env or DEFAULT_KEY
    key = os.environ.get(name, "").strip()
    if not key and config.api_key_env is not None:
        raise UserError(
            f"{place}.api_key_env: expected an API key in the environment variable {name}, got none; set it"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"{name}: expected an API key of printable ASCII, got other characters; set it again"
        )
    return key or None


def retry_after_s(header: str | None) -> float:
    """Seconds of a Retry-After header, a number or an HTTP date; 0 without a usable one."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(header)
            seconds = date.timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    # Also false for NaN.
    return seconds if 0 < seconds < float("inf") else 0.0

"""How a chat endpoint is reached, what it may cost, and when it is left alone."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from common.config.section import Section


class Endpoint(Section):
    """A chat endpoint that speaks OpenAI's protocol, such as a local `vllm serve`.

    The API key is no setting: it is read from the environment variable that `api_key_env` names.
    """

    # Without repr: a refused address may hold credentials, and `messages` shows no value of such a field.
    base_url: str = Field(description="such as http://localhost:8000/v1", repr=False)
    model: str = Field(min_length=1, description="the endpoint's name of the model")
    api_key_env: str | None = Field(
        None,
        description="environment variable with the key; none: OPENAI_API_KEY, or no key if that is not set",
    )
    temperature: float = Field(1.0, ge=0, le=100, description="of sampling (ours)")
    top_p: float = Field(1.0, gt=0, le=1, description="of sampling (ours)")
    max_tokens: int = Field(
        1024, ge=1, description="of one reply; a cut one is dropped (ours)"
    )
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the endpoint calls this limit"
    )
    concurrency: int = Field(16, ge=1, description="requests in flight")
    timeout_s: float = Field(
        60.0, gt=0, description="of one request, from connecting to its last byte"
    )
    max_retries: int = Field(
        5, ge=0, description="after 429, 5xx, a timeout or a broken connection"
    )
    price_in: float | None = Field(None, ge=0, description="per million prompt tokens")
    price_out: float | None = Field(
        None, ge=0, description="per million completion tokens"
    )

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises ValueError when out of range
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_one_word = url.isprintable() and " " not in url
        if not is_web or not is_one_word:
            raise ValueError("expected a URL such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "expected a URL without credentials, query or fragment; keys come from the environment"
            )
        return url


class Budget(Section):
    """What may be spent; the run stops with its state saved when any of it is used up.

    Replies of earlier starts of the same run count. Requests in flight are not called back, so tokens and money may
    be exceeded by what `concurrency` requests take.
    """

    calls: int | None = Field(None, ge=1, description="requests, failed ones as well")
    tokens: int | None = Field(
        None, ge=1, le=1 << 60, description="of prompts and replies together"
    )
    money: float | None = Field(
        None, gt=0, description="in the currency of price_in and price_out"
    )

    def share(self, num_parts: int) -> Budget:
        """What one of several equal spenders may spend."""
        calls, tokens, money = self.calls, self.tokens, self.money
        return Budget(
            calls=None if calls is None else max(1, calls // num_parts),
            tokens=None if tokens is None else max(1, tokens // num_parts),
            money=None if money is None else money / num_parts,
        )


class CircuitBreaker(Section):
    """When an endpoint that fails is left alone, and for how long."""

    failures: int = Field(8, ge=1, description="in a row, until nothing is asked")
    pause_s: float = Field(
        30.0, gt=0, description="after which one request tries whether it works again"
    )
    max_pauses: int = Field(
        5, ge=1, description="in a row; then everything asked meanwhile fails at once"
    )

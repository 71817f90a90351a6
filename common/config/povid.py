"""Settings of POVID's first stage: hallucinations injected into true answers (arXiv 2402.11411, section 3.1)."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from common.config.section import Section, Seed

ErrorKind: TypeAlias = Literal["entity", "attribute", "relation", "reasoning"]
KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)


class EndpointConfig(Section):
    """A chat endpoint that speaks OpenAI's protocol, such as a local `vllm serve`. The paper used GPT-4V.

    The API key is no setting: it is read from the environment variable that `api_key_env` names.
    """

    # Without repr: a refused address may hold credentials, and `messages` shows no value of such a field.
    base_url: str = Field(description="such as http://localhost:8000/v1", repr=False)
    model: str = Field(min_length=1, description="the endpoint's name of the model")
    api_key_env: str | None = Field(
        None,
        description="environment variable with the key; none: OPENAI_API_KEY, or no key if that is not set",
    )
    send_image: bool = Field(
        False,
        description="show the image to the endpoint's model, not text alone (ours)",
    )
    temperature: float = Field(1.0, ge=0, le=100, description="of sampling (ours)")
    top_p: float = Field(1.0, gt=0, le=1, description="of sampling (ours)")
    max_tokens: int = Field(
        1024, ge=1, description="of one rewritten answer; a cut one is dropped (ours)"
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


class PovidConfig(Section):
    """Which errors to inject, and which answers to refuse. Without `endpoint`, the shapes world's rules inject them."""

    endpoint: EndpointConfig | None = None
    kinds: tuple[ErrorKind, ...] = Field(
        KINDS, min_length=1, description="of errors to inject"
    )
    every_kind: bool = Field(
        False,
        description="a pair for every kind that suits a prompt, not for one random kind",
    )
    max_text_chars: int = Field(
        20_000, ge=1, description="a longer question or true answer is refused (ours)"
    )
    max_length_ratio: float = Field(
        2.0,
        gt=1,
        description="an answer that is longer or shorter than the true one by a larger factor is dropped (ours)",
    )
    seed: Seed = Field(
        0, description="of kinds and rules; `generate` uses run.seed unless this is set"
    )

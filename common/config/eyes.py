"""What a judge sees with: vision-language models in vLLM engines, in torch, or behind a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, Tag, field_validator, model_validator

from common.config.model import AUTO_MEANING, Length, Pictures
from common.config.rollout import EngineOptions
from common.config.section import Gpus, Section, TextOnDisk, by_kind


class LocalModel(Pictures):
    """A vision-language model of this machine or cluster."""

    path: TextOnDisk = Field(description="the judge's Hugging Face folder")
    chat_template: str | None = Field(
        None,
        description="Jinja chat template in the place of the model's, as a text or as a file that holds it",
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_length: Length = Field(
        4096,
        ge=16,
        description=f"tokens of question and reply together; {AUTO_MEANING}",
    )


class Engines(LocalModel):
    """A model in vLLM engines of its own, a Ray actor each. The paper's judge is LLaVA-1.6-34B (arXiv 2407.02477)."""

    num_engines: int = Field(1, ge=1)
    num_cpus: float = Field(1, ge=0, description="of one engine")
    num_gpus: Gpus = Field(0, description="of one engine")
    engine: EngineOptions = EngineOptions()

    @model_validator(mode="after")
    def _one_gpu_a_part(self) -> Engines:
        self.engine.check_gpus(self.num_gpus)
        return self


class EngineEye(Engines):
    """Eye of vLLM engines."""

    kind: Literal["engines"] = "engines"


class TorchEye(LocalModel):
    """Eye of a transformers model in the reward worker's process: one question at a time, for small models."""

    kind: Literal["torch"] = "torch"


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


class Server(Endpoint):
    """A model behind any server that speaks OpenAI's protocol."""

    temperature: float = Field(0.0, ge=0, le=100, description="0 is greedy")
    max_tokens: int = Field(512, ge=1, description="of one reply")
    budget: Budget = Budget()
    breaker: CircuitBreaker = CircuitBreaker()


class EndpointEye(Server):
    """Eye behind a server."""

    kind: Literal["endpoint"] = "endpoint"


EyeConfig = Annotated[
    Annotated[EngineEye, Tag("engines")]
    | Annotated[TorchEye, Tag("torch")]
    | Annotated[EndpointEye, Tag("endpoint")],
    by_kind("engines"),
]


def as_engine_eye(settings: Engines) -> EngineEye:
    """The eye's part of a section that has more fields."""
    return EngineEye(**_fields(settings, Engines))


def as_endpoint_eye(settings: Server) -> EndpointEye:
    """The eye's part of a section that has more fields."""
    return EndpointEye(**_fields(settings, Server))


def _fields(settings: Section, base: type[Section]) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in base.model_fields}


def eyes_of(section: object) -> Iterator[EngineEye | TorchEye | EndpointEye]:
    """The eyes of a judge and of all judges that it is made of."""
    if isinstance(section, EngineEye | TorchEye | EndpointEye):
        yield section
    elif isinstance(section, Section):
        # A property of judges that are an eye themselves.
        eye = getattr(section, "eye", None)
        if "eye" not in type(section).model_fields and eye is not None:
            yield eye
        for name in type(section).model_fields:
            yield from eyes_of(getattr(section, name))
    elif isinstance(section, Mapping):
        yield from eyes_of(tuple(section.values()))
    elif isinstance(section, tuple):
        for item in section:
            yield from eyes_of(item)


def engine_eyes(judge: Section) -> tuple[EngineEye, ...]:
    """The eyes that need engines, each once: judges with equal eyes share their engines."""
    eyes = [eye for eye in eyes_of(judge) if isinstance(eye, EngineEye)]
    return tuple(dict.fromkeys(eyes))


def endpoint_eyes(judge: Section) -> tuple[EndpointEye, ...]:
    """The eyes that are behind servers, each once."""
    eyes = [eye for eye in eyes_of(judge) if isinstance(eye, EndpointEye)]
    return tuple(dict.fromkeys(eyes))

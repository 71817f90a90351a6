"""What a judge sees with: vision-language models in vLLM engines, in torch, or behind a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from common.config.endpoint import Budget, CircuitBreaker, Endpoint
from common.config.rollout import EngineOptions
from common.config.section import Gpus, Section, TextOnDisk, by_kind


class LocalModel(Section):
    """A vision-language model of this machine or cluster."""

    path: TextOnDisk = Field(description="the judge's Hugging Face folder")
    chat_template: str | None = Field(
        None,
        description="Jinja chat template in the place of the model's, as a text or as a file that holds it",
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_length: int = Field(
        4096, ge=16, description="tokens of question and reply together"
    )


class Engines(LocalModel):
    """A model in vLLM engines of its own, a Ray actor each. The paper's judge is LLaVA-1.6-34B (arXiv 2407.02477)."""

    num_engines: int = Field(1, ge=1)
    num_cpus: float = Field(1, ge=0, description="of one engine")
    num_gpus: Gpus = Field(0, description="of one engine")
    engine: EngineOptions = EngineOptions()


class EngineEye(Engines):
    """Eye of vLLM engines."""

    kind: Literal["engines"] = "engines"


class TorchEye(LocalModel):
    """Eye of a transformers model in the reward worker's process: one question at a time, for small models."""

    kind: Literal["torch"] = "torch"


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

"""Settings of POVID's first stage: hallucinations injected into true answers (arXiv 2402.11411, section 3.1)."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from pydantic import Field

from common.config.eyes import Endpoint
from common.config.section import Section, Seed

ErrorKind: TypeAlias = Literal["entity", "attribute", "relation", "reasoning"]
KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)


class EndpointConfig(Endpoint):
    """The endpoint whose model writes the errors. The paper used GPT-4V."""

    send_image: bool = Field(
        False,
        description="show the image to the endpoint's model, not text alone (ours)",
    )


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

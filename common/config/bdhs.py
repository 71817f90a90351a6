"""Settings of BDHS, Bias-Driven Hallucination Sampling (arXiv 2407.02477, section 3.4)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.config.section import Section, Seed


class BdhsConfig(Section):
    """The paper's values; values that it does not state are marked "ours".

    What each variant hides, and how it makes an answer:

        attention   image tokens beyond `rho`; the sentences of the true answer are continued
        noise       nothing, the image is noised; the sentences of the true answer are continued
        unguided    image tokens beyond `rho`; every attempt is a whole answer of its own

    `rho` must be tuned to the number of image tokens: 0.99 of 2,880 tokens leaves 29, of 36 tokens none. The paper
    tunes it by the share of examples that need another attempt. With `rho` 1 no image token is visible.
    """

    variant: Literal["attention", "noise", "unguided"] = Field(
        "attention",
        description="hide image tokens, noise the image, or write whole answers with image tokens hidden",
    )
    rho: float = Field(
        0.99,
        ge=0,
        le=1,
        description="an image token stays visible iff its uniform draw is >= rho",
    )
    noise_step: int = Field(
        500, ge=0, lt=1000, description="diffusion step of 1000; variant noise only"
    )
    similarity_threshold: float = Field(
        0.97, ge=-1, le=2, description="accept a rejected answer less similar than this"
    )
    max_attempts: int = Field(
        5,
        ge=1,
        description="attempts per prompt; the last one is unguided and taken whatever its similarity",
    )
    flip_prob: float = Field(
        0.5,
        ge=0,
        le=1,
        description="a sentence that begins with Yes or No is flipped this often",
    )
    yes_no: Literal["both", "no", "neither"] = Field(
        "both",
        description="true answers to yes/no questions that become pairs. no: only inventing is rejected (ours)",
    )
    temperature: float = Field(1.0, ge=0, le=100, description="of sampling (ours)")
    max_tokens: int = Field(
        64,
        ge=1,
        description="of one sentence's continuation; a longer one is not taken (ours)",
    )
    max_answer_tokens: int = Field(
        256,
        ge=1,
        description="of the unguided answer; a longer one is not taken (ours)",
    )
    max_reference_chars: int = Field(
        20_000,
        ge=1,
        description="a longer true answer is refused as answer_too_long (ours)",
    )
    stop: tuple[str, ...] = Field(
        (".",), description="what ends a continuation, besides the end of sequence"
    )
    seed: Seed = Field(
        0,
        description="of masks, cuts and samples; `generate` uses run.seed unless this is set",
    )

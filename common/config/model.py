"""The start policy and what of it is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag, ValidationInfo, model_validator

from common.config.section import FrozenTable, Section, Table, TextOnDisk, by_kind

SHAPES_POLICY = "common/shapes/policy"
TABLETOP_POLICY = "common/tabletop/policy"
AUTO = "auto"
AUTO_LENGTH = 8192
"""`auto` is the model's positions, and at most so many: an engine's memory and a learner's rows grow with them."""
AUTO_MEANING = f"auto: the model's positions, at most {AUTO_LENGTH:,}"


def auto_length(path: str) -> int:
    """What `auto` means for a model directory: it is resolved where a config is read, so all behind knows a number.

    Raises:
        UserError: its config cannot be read, or does not say how many positions the model has.
    """
    # transformers takes seconds to import, and other lengths do without.
    from common.chat.positions import positions_of_directory

    return min(positions_of_directory(path), AUTO_LENGTH)


def _resolved(value: Any, info: ValidationInfo) -> Any:
    if value != AUTO:
        return value
    path = info.data.get("path")
    if path is None:
        raise ValueError("expected a path beside auto")
    return auto_length(path)


Length = Annotated[int, BeforeValidator(_resolved)]
"""Tokens of a section whose model is `path`, declared before it; or `auto`."""


class Full(Section):
    """Train every parameter of the parts that are not frozen."""

    kind: Literal["full"] = "full"

    @property
    def is_quantized(self) -> bool:
        """Never: what is trained is not."""
        return False


class Lora(Section):
    """Low-rank adapters by peft; r and alpha as in both papers."""

    kind: Literal["lora"] = "lora"
    r: int = Field(128, ge=1)
    alpha: int = Field(256, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    sides: tuple[Literal["language", "projector", "vision"], ...] = Field(
        ("language",),
        min_length=1,
        description="parts with adapters; vision and projector get them on all their linear layers",
    )
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    quantize: Literal["none", "nf4"] = Field(
        "none",
        description="nf4: the language side's linear layers in 4 bits (QLoRA, arXiv 2305.14314)",
    )
    push: Literal["auto", "merged", "adapter"] = Field(
        "auto",
        description="what engines get: all weights, merged, or the adapter alone, which they run beside the start "
        "policy's weights: exact, and fewer bytes (language side only). auto: the adapter wherever engines can run it",
    )

    @property
    def is_quantized(self) -> bool:
        """Whether the learner holds the base weights in fewer bits than the start policy's files."""
        return self.quantize != "none"

    @model_validator(mode="after")
    def _adapter_is_all_that_changes(self) -> Lora:
        if self.push == "adapter" and (
            self.sides != ("language",) or self.is_quantized
        ):
            raise ValueError(
                f"model.tuning.push = adapter needs sides = language and quantize = none, since engines keep the start "
                f"policy's weights, got {', '.join(self.sides)} and {self.quantize}; set push = merged"
            )
        return self


Tuning = Annotated[
    Annotated[Full, Tag("full")] | Annotated[Lora, Tag("lora")], by_kind("full")
]


MAX_IMAGES = 8


class Pictures(Section):
    """How many pictures a prompt may have, and how large the model sees them: in engines and learner alike."""

    min_pixels: int | None = Field(
        None, ge=4, description="of a picture; a smaller one is enlarged, shape kept"
    )
    max_pixels: int | None = Field(
        None,
        ge=4,
        description="of a picture; a larger one is made smaller, shape kept. How many tokens it has then is the "
        "family's way: a model that brings every picture to one size of its own makes as many of it as before",
    )
    mm_processor_kwargs: Table = Field(
        FrozenTable(),
        description="arguments of the model's image processor, such as max_patches = 4 or size = {longest_edge = 512}",
    )
    max_images: int = Field(
        MAX_IMAGES,
        ge=1,
        description="of a prompt; one with more is refused and counted",
    )

    @model_validator(mode="after")
    def _limits_leave_room(self) -> Pictures:
        low, high = self.min_pixels, self.max_pixels
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"expected min_pixels of at most max_pixels, got {low} and {high}; lower min_pixels"
            )
        return self


class Model(Pictures):
    """The start policy, a Hugging Face directory, and what of it is trained."""

    path: TextOnDisk = Field(SHAPES_POLICY, description="a Hugging Face folder")
    chat_template: str | None = Field(
        None,
        description="Jinja chat template in the place of the model's, as a text or as a file that holds it",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the weights, for engines and learner"
    )
    max_length: Length = Field(
        512,
        ge=16,
        description=f"tokens of prompt and response together; longer ones are refused and counted; {AUTO_MEANING}",
    )
    tuning: Tuning = Full()
    freeze_vision: bool = Field(
        True, description="freeze the vision tower; the projector stays trainable"
    )

"""The one place that turns messages and images into model inputs, for the engine and for the learner alike.

The engine gets the unexpanded prompt text and the pixels and expands image tokens itself; the learner expands
them here, through the same processor. `Prompt token ids` of both sides must be equal, and are compared when pairs
are collated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoConfig, AutoProcessor

from common import images
from common.errors import Refused, UserError
from common.loading import readable
from common.records import Prompt


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """`token_ids` with image tokens expanded; `model_inputs` the processor's other tensors (pixel_values, …)."""

    token_ids: tuple[int, ...]
    num_image_tokens: int
    model_inputs: dict[str, Any] = field(default_factory=dict)


def has_grid_positions(config: Any) -> bool:
    """Whether a model's rotary positions have three dimensions: time, height and width (Qwen's M-RoPE)."""
    text = config.get_text_config()
    rope = (
        getattr(text, "rope_parameters", None)
        or getattr(text, "rope_scaling", None)
        or {}
    )
    return "mrope_section" in rope


class ChatEncoder:
    """Processor, chat template and limits of one model directory.

    Raises:
        UserError: the directory is no Hugging Face model directory, or its files cannot be read.
    """

    def __init__(self, model_path: str | Path, max_length: int) -> None:
        self.model_path = Path(model_path)
        if not (self.model_path / "config.json").is_file():
            raise UserError(
                f"model.path: expected a Hugging Face model directory with config.json, got {self.model_path}; "
                "check the path"
            )
        self.max_length = max_length
        with readable(self.model_path):
            self.config = AutoConfig.from_pretrained(self.model_path)
            self.processor = AutoProcessor.from_pretrained(self.model_path)
        self.tokenizer = self.processor.tokenizer

    @cached_property
    def image_token_id(self) -> int:
        """The placeholder that image features replace."""
        config = self.config
        found = getattr(config, "image_token_id", None)
        return int(found if found is not None else config.image_token_index)

    @cached_property
    def media_token_ids(self) -> tuple[int, ...]:
        """Every token id that stands for media: banned at sampling, refused in responses."""
        names = ("image", "video", "vision_start", "vision_end")
        fields = [f"{name}_token_id" for name in names] + [
            "image_token_index",
            "video_token_index",
        ]
        found = {getattr(self.config, name, None) for name in fields}
        return tuple(sorted(int(token) for token in found if token is not None))

    @cached_property
    def _media_tokens(self) -> tuple[str, ...]:
        """How a text would spell the media tokens."""
        return tuple(
            token
            for token in self.tokenizer.convert_ids_to_tokens(
                list(self.media_token_ids)
            )
            if token
        )

    @property
    def eos_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def prompt_text(self, prompt: Prompt) -> str:
        """The chat template's text, one unexpanded placeholder per image, ready to be answered.

        Raises:
            Refused: `image_count` when images and image parts differ in number, or a text spells a media token.
        """
        num_slots = sum(
            part.kind == "image"
            for message in prompt.messages
            for part in message.parts
        )
        if num_slots != len(prompt.images):
            raise Refused(
                "image_count",
                f"prompt {prompt.id}: expected as many images as image parts, got {len(prompt.images)} images for "
                f"{num_slots} parts; repair the row",
            )
        texts = [
            "".join(part.text for part in message.parts if part.kind == "text")
            for message in prompt.messages
        ]
        if spelled := [
            token
            for token in self._media_tokens
            if any(token in text for text in texts)
        ]:
            raise Refused(
                "image_count",
                f"prompt {prompt.id}: expected images as image parts, got {', '.join(spelled)} as text; take it out",
            )
        messages = [
            {
                "role": message.role,
                "content": [
                    {"type": "image"}
                    if part.kind == "image"
                    else {"type": "text", "text": part.text}
                    for part in message.parts
                ],
            }
            for message in prompt.messages
        ]
        return str(
            self.processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        )

    def load_images(self, prompt: Prompt) -> list[Image.Image]:
        """RGB pixels of the prompt's images (Refused names the reason when one cannot be used)."""
        return [images.read(ref) for ref in prompt.images]

    def encode_prompt(
        self,
        prompt: Prompt,
        view: Callable[[list[Image.Image]], list[Image.Image]] | None = None,
    ) -> EncodedPrompt:
        """Expanded token ids and pixel tensors. Raises Refused `prompt_too_long`, `image_count`; Refused.

        `view` changes the images before the processor sees them.
        """
        pixels = self.load_images(prompt)
        if view is not None:
            pixels = view(pixels)
        text = self.prompt_text(prompt)
        inputs = dict(
            self.processor(text=[text], images=pixels or None, return_tensors="pt")
        )
        token_ids = tuple(inputs.pop("input_ids")[0].tolist())
        inputs.pop("attention_mask", None)
        self.check_length(prompt, len(token_ids))
        return EncodedPrompt(token_ids, token_ids.count(self.image_token_id), inputs)

    def check_length(self, prompt: Prompt, num_tokens: int) -> None:
        """Room for at least one response token must be left; never truncates."""
        if num_tokens >= self.max_length:
            raise Refused(
                "prompt_too_long",
                f"prompt {prompt.id}: expected fewer than model.max_length = {self.max_length} tokens, got "
                f"{num_tokens}; shorten it or raise model.max_length",
            )

    def encode_response(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer that is only known as text, end-of-sequence token included."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return (*map(int, ids), self.eos_token_id)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """Text of response tokens, special tokens left out."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

"""The one place that turns messages and images into model inputs, for the engine and for the learner alike.

The engine takes the prompt as text with one placeholder per image, and the pixels, and expands the placeholders into
image tokens itself. The learner expands them here, with the same Hugging Face processor. Both must arrive at the same
prompt token ids: `learner.batch.collate` compares them for every pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoConfig, AutoProcessor

from common.data import images
from common.errors import Refused, UserError
from common.loading import readable
from common.records import Prompt


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the model takes it.

    `token_ids` has every image expanded into its `num_image_tokens` tokens (counted over all images); `model_inputs`
    holds the processor's other tensors (`pixel_values`, `image_grid_thw`, …), with a leading batch dimension.
    """

    token_ids: tuple[int, ...]
    num_image_tokens: int
    model_inputs: dict[str, Any] = field(default_factory=dict)


def has_grid_positions(config: Any) -> bool:
    """Whether a model's rotary positions have three dimensions: time, height and width (Qwen's M-RoPE)."""
    text = config.get_text_config()
    # transformers 5 renamed `rope_scaling`; some families still carry the old name.
    parameters = getattr(text, "rope_parameters", None)
    scaling = getattr(text, "rope_scaling", None)
    return "mrope_section" in (parameters or scaling or {})


class ChatEncoder:
    """Processor, chat template and length limit of one model directory.

    Args:
        max_length: tokens of prompt and response together (`model.max_length`).

    Raises:
        UserError: this is no Hugging Face model directory, or its files cannot be loaded.
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
        """The placeholder token that image features replace."""
        token_id = getattr(self.config, "image_token_id", None)
        if token_id is None:
            token_id = self.config.image_token_index
        return int(token_id)

    @cached_property
    def media_token_ids(self) -> tuple[int, ...]:
        """All token ids that stand for media, sorted: never sampled, and refused in responses."""
        names = (
            "image_token_id",
            "video_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
            "image_token_index",
            "video_token_index",
        )
        token_ids = set()
        for name in names:
            token_id = getattr(self.config, name, None)
            if token_id is not None:
                token_ids.add(int(token_id))
        return tuple(sorted(token_ids))

    @cached_property
    def _media_tokens(self) -> tuple[str, ...]:
        """The media tokens as a text would spell them."""
        tokens = self.tokenizer.convert_ids_to_tokens(list(self.media_token_ids))
        return tuple(token for token in tokens if token)

    @property
    def eos_token_id(self) -> int:
        """The end-of-sequence token id."""
        return int(self.tokenizer.eos_token_id)

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt as the chat template writes it, ready to be answered, with one placeholder per image.

        Raises:
            Refused: `image_count` when the numbers of images and image parts differ, or a text spells a media token.
        """
        self._check_media(prompt)
        messages = []
        for message in prompt.messages:
            content = []
            for part in message.parts:
                if part.kind == "image":
                    content.append({"type": "image"})
                else:
                    content.append({"type": "text", "text": part.text})
            messages.append({"role": message.role, "content": content})
        text = self.processor.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
        )
        return str(text)

    def _check_media(self, prompt: Prompt) -> None:
        num_slots = 0
        spelled: set[str] = set()
        for message in prompt.messages:
            text = ""
            for part in message.parts:
                if part.kind == "image":
                    num_slots += 1
                else:
                    text += part.text
            # The processor cannot tell a spelled placeholder from the place of an image.
            spelled.update(token for token in self._media_tokens if token in text)
        if num_slots != len(prompt.images):
            raise Refused(
                "image_count",
                f"prompt {prompt.id}: expected as many images as image parts, got {len(prompt.images)} images for "
                f"{num_slots} parts; repair the row",
            )
        if spelled:
            names = ", ".join(token for token in self._media_tokens if token in spelled)
            raise Refused(
                "image_count",
                f"prompt {prompt.id}: expected images as image parts, got {names} as text; take it out",
            )

    def load_images(self, prompt: Prompt) -> list[Image.Image]:
        """RGB pixels of the prompt's images (Refused `image_*` when one cannot be used)."""
        return [images.read(ref) for ref in prompt.images]

    def encode_prompt(
        self,
        prompt: Prompt,
        edit_images: Callable[[list[Image.Image]], list[Image.Image]] | None = None,
    ) -> EncodedPrompt:
        """Token ids with images expanded, and pixel tensors.

        Args:
            edit_images: changes the pixels of the prompt's images before the processor sees them.

        Raises:
            Refused: `prompt_too_long`, `image_count`, or `image_*` when an image cannot be used.
        """
        pixels = self.load_images(prompt)
        if edit_images is not None:
            pixels = edit_images(pixels)
        text = self.prompt_text(prompt)
        inputs = dict(
            self.processor(text=[text], images=pixels or None, return_tensors="pt")
        )
        token_ids = tuple(inputs.pop("input_ids")[0].tolist())
        inputs.pop("attention_mask", None)
        self.check_length(prompt, len(token_ids))
        num_image_tokens = token_ids.count(self.image_token_id)
        return EncodedPrompt(token_ids, num_image_tokens, inputs)

    def check_length(self, prompt: Prompt, num_tokens: int) -> None:
        """Refuse a prompt that leaves no room for a response token (`prompt_too_long`); nothing is truncated."""
        if num_tokens >= self.max_length:
            raise Refused(
                "prompt_too_long",
                f"prompt {prompt.id}: expected fewer than model.max_length = {self.max_length} tokens, got "
                f"{num_tokens}; shorten it or raise model.max_length",
            )

    def encode_response(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer that is only known as text, end-of-sequence token included."""
        token_ids = self.tokenizer.encode(text, add_special_tokens=False)
        return (*token_ids, self.eos_token_id)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """The text of response tokens, without special tokens."""
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return str(text)

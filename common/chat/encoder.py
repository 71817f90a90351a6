"""The one place that turns messages and images into model inputs, for the engine and for the learner alike.

    prompt ── check media ── chat template ─┬─ tokenizer ──────────▶ prompt_ids      one token per image, for the engine
                                            └─ processor + pixels ─▶ encode_prompt   images expanded, for the learner

The engine takes the prompt's ids with one placeholder per image, and the pixels, and expands the placeholders into
image tokens itself. The learner expands them here, with the same Hugging Face processor. Both must arrive at the same
prompt token ids: `learner.batch.collate` compares them for every pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from common.chat.answers import AnswerEncoder
from common.chat.expansion import expanded_like
from common.chat.proof import prove
from common.config.model import Pictures
from common.data import images
from common.errors import Refused
from common.records import Message, Part, Prompt
from common.row_faults import refusing

TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""Outputs of a processor that say of every token whether it is an image's."""


def _text_of(message: Message) -> str:
    return "".join(part.text for part in message.parts)


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the model takes it.

    `token_ids` has every image expanded into its `num_image_tokens` tokens (counted over all images); `model_inputs`
    holds the processor's other tensors (`pixel_values`, `image_grid_thw`, …), with a leading batch dimension.
    """

    token_ids: tuple[int, ...]
    num_image_tokens: int
    model_inputs: dict[str, Any] = field(default_factory=dict)


class ChatEncoder(AnswerEncoder):
    """Processor, chat template and length limit of one model directory.

    Args:
        max_length: tokens of prompt and response together (`model.max_length`).
        chat_template: replaces the model's template (`model.chat_template`): a text, or a file that holds one.
        key: the setting that names the directory, for messages.
        pictures: how large pictures are for the model, and how many a prompt may have.

    Attributes:
        warnings: what a person should know about the directory, one line each; `check_model` logs them.

    Raises:
        UserError: this is no Hugging Face model directory, its files cannot be loaded, or one must be corrected.
    """

    def __init__(
        self,
        model_path: str | Path,
        max_length: int,
        chat_template: str | None = None,
        key: str = "model.path",
        pictures: Pictures | None = None,
    ) -> None:
        super().__init__(Path(model_path), chat_template, key, pictures or Pictures())
        self.max_length = max_length
        self.warnings += prove(self)

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt as the chat template writes it, ready to be answered, with one placeholder per image.

        Raises:
            Refused: `image_count` when the numbers of images and image parts differ, or a text spells a media token;
                `chat_template` when the template refuses the conversation.
        """
        return self.plain_text.unmask(self._masked_text(prompt))

    def _masked_text(self, prompt: Prompt) -> str:
        """The rendered prompt, with stand-ins for the special tokens that its texts spell."""
        self._check_media(prompt)
        messages = [self._masked(prompt, message) for message in prompt.messages]
        with refusing(
            "chat_template",
            f"prompt {prompt.id}: expected turns that the chat template of {self.where} takes",
            "change the row, or give another template with model.chat_template",
        ):
            rendered = self.template.render(messages)
        num_written = 0
        for message in messages:
            num_written += self.plain_text.num_masks(_text_of(message))
        if self.plain_text.num_masks(rendered) < num_written:
            raise Refused(
                "special_token",
                f"prompt {prompt.id}: expected text without special tokens, since the chat template of {self.where} "
                "changes the text around them; take them out",
            )
        return rendered

    def _masked(self, prompt: Prompt, message: Message) -> Message:
        plain = self.plain_text
        text = ""
        parts = []
        is_answer = message.role == "assistant"
        for part in message.parts:
            if part.kind == "text":
                text += part.text
                # The template ends an answer itself.
                content = self.without_end_mark(part.text) if is_answer else part.text
                part = Part("text", plain.mask(content))
            parts.append(part)
        masked = _text_of(replace(message, parts=tuple(parts)))
        if not plain.is_plain(masked):
            raise Refused(
                "special_token",
                f"prompt {prompt.id}: expected text without special tokens, got one that is spelled over two parts of "
                f"{text[:80]!r}; take it out",
            )
        return replace(message, parts=tuple(parts))

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
            spelled.update(token for token in self.media_tokens if token in text)
        if len(prompt.images) > self.max_images:
            limit = f"{self.key.removesuffix('path')}max_images"
            raise Refused(
                "image_count",
                f"prompt {prompt.id}: expected at most {limit} = {self.max_images} images, got {len(prompt.images)}; "
                f"raise {limit} or leave the row out",
            )
        if num_slots != len(prompt.images):
            raise Refused(
                "image_count",
                f"prompt {prompt.id}: expected as many images as image parts, got {len(prompt.images)} images for "
                f"{num_slots} parts; repair the row",
            )
        if spelled:
            names = ", ".join(token for token in self.media_tokens if token in spelled)
            raise Refused(
                "image_count",
                f"prompt {prompt.id}: expected images as image parts, got {names} as text; take it out",
            )

    def load_images(self, prompt: Prompt) -> list[Image.Image]:
        """RGB pixels of the prompt's images, of a size within the limits (Refused `image_*` when one is unusable)."""
        return [self.picture_sizes.fitted(images.read(ref)) for ref in prompt.images]

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids with one placeholder per image, which the engine expands.

        Raises:
            Refused: as `encode_prompt`, but for the length and the images.
        """
        return self._ids_of(prompt, self._masked_text(prompt))

    def _ids_of(self, prompt: Prompt, masked: str) -> list[int]:
        plain = self.plain_text
        text = plain.unmask(masked)
        with refusing(
            "tokenizer",
            f"prompt {prompt.id}: expected a text that the tokenizer of {self.where} takes",
            "change the text or leave the row out",
        ):
            if text == masked:
                token_ids = self.text_ids(text)
            else:
                adds_special = self.adds_special_tokens(masked)
                prefix = self.tokenizer("").input_ids if adds_special else []
                token_ids = plain.rendered_ids(masked, prefix)
        self.check_known(f"prompt {prompt.id}", token_ids)
        return token_ids

    def encode_prompt(
        self,
        prompt: Prompt,
        edit_images: Callable[[list[Image.Image]], list[Image.Image]] | None = None,
    ) -> EncodedPrompt:
        """Token ids with images expanded, and pixel tensors.

        Args:
            edit_images: changes the pixels of the prompt's images before the processor sees them.

        Raises:
            Refused: `prompt_too_long`, `image_too_long`, `image_count`, `image_*` when an image cannot be used,
                `special_token` when a written-out special token cannot be taken as text, `token_unknown` for one
                without an embedding, or `chat_template`, `tokenizer`, `processor` with what these raise about the row.
        """
        pixels = self.load_images(prompt)
        if edit_images is not None:
            pixels = edit_images(pixels)
        masked = self._masked_text(prompt)
        encoded = self.encode_text(
            f"prompt {prompt.id}", self.plain_text.neutral(masked), pixels
        )
        if self.plain_text.unmask(masked) != masked:
            encoded = self._with_text(prompt, masked, encoded)
        self.check_length(prompt, len(encoded.token_ids), encoded.num_image_tokens)
        self.check_known(f"prompt {prompt.id}", encoded.token_ids)
        return encoded

    def encode_text(
        self, row: str, text: str, pixels: Sequence[Image.Image]
    ) -> EncodedPrompt:
        """What the processor makes of a rendered text and its images; `row` names it in Refused (`processor`)."""
        with refusing(
            "processor",
            f"{row}: expected text and images that the processor of {self.where} takes",
            "change the row or leave it out",
        ):
            inputs = dict(
                self.processor(
                    text=[text],
                    images=list(pixels) or None,
                    return_tensors="pt",
                    add_special_tokens=self.adds_special_tokens(text),
                    **self.picture_sizes.arguments,
                )
            )
            token_ids = tuple(inputs.pop("input_ids")[0].tolist())
        inputs.pop("attention_mask", None)
        num_image_tokens = token_ids.count(self.image_token_id)
        return EncodedPrompt(token_ids, num_image_tokens, inputs)

    def _with_text(
        self, prompt: Prompt, masked: str, measured: EncodedPrompt
    ) -> EncodedPrompt:
        """The inputs of `measured`, whose text is neutral, with the text that was masked around its images."""
        neutral = self.text_ids(self.plain_text.neutral(masked))
        token_ids = expanded_like(
            measured.token_ids,
            self._parts(neutral),
            self._parts(self._ids_of(prompt, masked)),
        )
        inputs = dict(measured.model_inputs)
        types = [name for name in TOKEN_TYPES if name in inputs]
        if token_ids is None or not all(
            self._are_media_types(inputs[name], measured.token_ids) for name in types
        ):
            raise Refused(
                "special_token",
                f"prompt {prompt.id}: expected text without special tokens, since this processor cannot take them as "
                "plain text beside images; take them out",
            )
        for name in types:
            inputs[name] = self._media_types(token_ids)
        return EncodedPrompt(tuple(token_ids), measured.num_image_tokens, inputs)

    def _parts(self, unexpanded: Sequence[int]) -> list[list[int]]:
        """A prompt's tokens before, between and behind its images."""
        parts: list[list[int]] = [[]]
        for token in unexpanded:
            if token == self.placeholder_id:
                parts.append([])
            else:
                parts[-1].append(token)
        return parts

    def _media_types(self, token_ids: Sequence[int]) -> torch.Tensor:
        """What kind of token each is, [1, tokens]: 1 for an image's."""
        types = self.processor.create_mm_token_type_ids([list(token_ids)])
        return torch.tensor(types)

    def _are_media_types(self, types: torch.Tensor, token_ids: Sequence[int]) -> bool:
        return torch.equal(types, self._media_types(token_ids))

    def check_length(
        self, prompt: Prompt, num_tokens: int, num_image_tokens: int = 0
    ) -> None:
        """Refuse a prompt that leaves no room for a response token; nothing is truncated.

        Raises:
            Refused: `image_too_long` where most of the tokens are those of its images, `prompt_too_long` elsewhere.
        """
        if num_tokens < self.max_length:
            return
        limit = f"model.max_length = {self.max_length}"
        what = (
            f"prompt {prompt.id}: expected fewer than {limit} tokens, got {num_tokens}"
        )
        if 2 * num_image_tokens > num_tokens:
            raise Refused(
                "image_too_long",
                f"{what}, of which {num_image_tokens} are those of its {len(prompt.images)} images; "
                f"{self.picture_sizes.remedy}, or raise model.max_length",
            )
        raise Refused(
            "prompt_too_long", f"{what}; shorten it or raise model.max_length"
        )

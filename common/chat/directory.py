"""A model directory as the encoder sees it: processor, template, and which of its tokens mean what."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from common.chat.opening import (
    generation_eos_ids,
    image_token_id_of,
    open_model,
    placeholder_of,
)
from common.chat.pictures import PictureSizes
from common.chat.template import ChatTemplate
from common.config.model import Pictures


class ModelDirectory:
    """Processor, chat template and special tokens of one model directory.

    Args:
        chat_template: replaces the model's template (`model.chat_template`): a text, or a file that holds one.
        key: the setting that names the directory, for messages.
        pictures: how large pictures are for the model, and how many a prompt may have.

    Attributes:
        where: names the directory in messages.
        picture_sizes: what is done to pictures, and what the processor is told about them.
        max_images: of one prompt.
        template_source: where the chat template comes from.
        warnings: what a person should know about the directory, one line each; `check_model` logs them.

    Raises:
        UserError: this is no Hugging Face model directory, its files cannot be loaded, or one must be corrected.
    """

    def __init__(
        self,
        path: Path,
        chat_template: str | None,
        key: str,
        pictures: Pictures,
    ) -> None:
        self.model_path = path
        self.key = key
        self.where = f"{key} {path}"
        opened = open_model(path, key, chat_template)
        self.config, self.processor = opened.config, opened.processor
        self.template_source = opened.template_source
        self.tokenizer = self.processor.tokenizer
        self.template = ChatTemplate(
            self.processor, self.where, self._placeholder, self._image_text()
        )
        section = key.removesuffix(".path")
        self.max_images = pictures.max_images
        self.picture_sizes = PictureSizes(
            pictures, self.processor.image_processor, section
        )
        self.warnings = [*opened.notes, *self.template.warnings]

    @cached_property
    def image_token_id(self) -> int:
        """The token that image features replace."""
        token_id = image_token_id_of(self.config)
        assert token_id is not None, "a model without one is refused when it is opened"
        return token_id

    @cached_property
    def placeholder_id(self) -> int:
        """The token that a prompt has for an image before it is expanded; for most families that of its features."""
        return int(self.tokenizer.convert_tokens_to_ids(self._placeholder))

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
            "boi_token_index",
            "eoi_token_index",
        )
        token_ids = {self.placeholder_id}
        for name in names:
            token_id = getattr(self.config, name, None)
            if token_id is not None:
                token_ids.add(int(token_id))
        return tuple(sorted(token_ids))

    @cached_property
    def media_tokens(self) -> tuple[str, ...]:
        """The media tokens as a text would spell them."""
        tokens = self.tokenizer.convert_ids_to_tokens(list(self.media_token_ids))
        return tuple(token for token in tokens if token)

    @property
    def _placeholder(self) -> str:
        return placeholder_of(self.config, self.processor)

    def _image_text(self) -> str:
        """What stands for an image in a text: its placeholder, between the model's marks of a picture if it has any."""
        token_ids = [
            getattr(self.config, "vision_start_token_id", None),
            self.placeholder_id,
            getattr(self.config, "vision_end_token_id", None),
        ]
        known = [token_id for token_id in token_ids if token_id is not None]
        return "".join(self.tokenizer.convert_ids_to_tokens(known))

    @cached_property
    def eos_token_id(self) -> int:
        """The token that ends an answer: what the template ends an assistant's turn with, or else the tokenizer's."""
        end = self.template.assistant_turn.end or self.tokenizer.eos_token
        return int(self.tokenizer.convert_tokens_to_ids(end))

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The tokens that sampling stops at, sorted: the answer's end, and those that engines stop at by themselves."""
        stops = {self.eos_token_id, int(self.tokenizer.eos_token_id)}
        stops.update(self.generation_eos_ids)
        return tuple(sorted(stops))

    @cached_property
    def generation_eos_ids(self) -> tuple[int, ...]:
        """The ends that the model's own files list; engines stop at them, and at the tokenizer's, by themselves."""
        return generation_eos_ids(self.model_path, self.config)

    @property
    def extra_stop_token_ids(self) -> tuple[int, ...]:
        """The answer's end, when engines would not stop at it by themselves."""
        known = {int(self.tokenizer.eos_token_id), *self.generation_eos_ids}
        return () if self.eos_token_id in known else (self.eos_token_id,)

    @cached_property
    def num_embeddings(self) -> int:
        """Rows of the embedding; the tokenizer may have fewer tokens, or more."""
        return int(self.config.get_text_config().vocab_size)

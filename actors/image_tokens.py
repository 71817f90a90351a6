"""How many image tokens the policy sees of a prompt."""

from __future__ import annotations

from common.chat import ChatEncoder
from common.records import Prompt


class ImageTokenCounter:
    """Counts the tokens of a prompt's (single) image. The number depends on the image's size alone."""

    def __init__(self, encoder: ChatEncoder) -> None:
        self._encoder = encoder
        self._known: dict[tuple[int, int], int] = {}

    def __call__(self, prompt: Prompt) -> int:
        """Raises Refused for a prompt that the policy cannot be given."""
        (image,) = self._encoder.load_images(prompt)
        if image.size not in self._known:
            self._known[image.size] = self._encoder.encode_prompt(
                prompt
            ).num_image_tokens
        return self._known[image.size]

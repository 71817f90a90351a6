"""The number of image tokens that the policy sees of a prompt."""

from __future__ import annotations

from common.chat import ChatEncoder
from common.records import Prompt


class ImageTokenCounter:
    """Counts the tokens of a prompt's only image. Images of one size have one number, so it is encoded once."""

    def __init__(self, encoder: ChatEncoder) -> None:
        self._encoder = encoder
        # Width and height in pixels -> tokens.
        self._by_size: dict[tuple[int, int], int] = {}

    def __call__(self, prompt: Prompt) -> int:
        """Number of image tokens. Raises Refused for a prompt that the policy cannot be given."""
        (image,) = self._encoder.load_images(prompt)
        size = image.size
        if size not in self._by_size:
            encoded = self._encoder.encode_prompt(prompt)
            self._by_size[size] = encoded.num_image_tokens
        return self._by_size[size]

"""The number of image tokens that the policy sees of a prompt."""

from __future__ import annotations

from common.chat import ChatEncoder
from common.records import Prompt


class ImageTokenCounter:
    """Counts the tokens of a prompt's images. Images of equal sizes have one number, so they are encoded once."""

    def __init__(self, encoder: ChatEncoder) -> None:
        self._encoder = encoder
        # Width and height in pixels of every image -> tokens.
        self._by_size: dict[tuple[tuple[int, int], ...], int] = {}

    def __call__(self, prompt: Prompt) -> int:
        """Number of image tokens. Raises Refused for a prompt that the policy cannot be given."""
        sizes = tuple(image.size for image in self._encoder.load_images(prompt))
        if sizes not in self._by_size:
            encoded = self._encoder.encode_prompt(prompt)
            self._by_size[sizes] = encoded.num_image_tokens
        return self._by_size[sizes]

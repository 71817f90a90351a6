"""The worse image m' of mDPO (arXiv 2406.11839): a random crop that keeps 1 to 20 % of the picture.

The draw belongs to the pair: the same for policy and reference, in all epochs and on every rank. The crop has the
picture's proportions and is scaled back to its size (ours), so that any family's processor makes as many image tokens
of it, and a pair that fits `model.max_length` still does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from common.seeding import derive_seed


@dataclass(frozen=True, slots=True)
class Crop:
    """A crop of each of a prompt's images.

    Args:
        seed: of the draw.
        low, high: the kept share of the area is uniform between them.
    """

    seed: int
    low: float
    high: float

    @property
    def name(self) -> str:
        """A name that differs between crops of one image, as part of cache keys."""
        return f"crop {self.seed} {self.low} {self.high} of "

    def box(self, size: tuple[int, int], index: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what is kept of the prompt's image number `index`, in whole pixels."""
        # Each image of a prompt has its own draw.
        draw = random.Random(derive_seed(self.seed, index))
        share = draw.uniform(self.low, self.high)
        # Both sides shrink alike, so the picture's proportions stay.
        scale = share**0.5
        full_width, full_height = size
        width = max(1, round(full_width * scale))
        height = max(1, round(full_height * scale))
        left = draw.randint(0, full_width - width)
        top = draw.randint(0, full_height - height)
        right = left + width
        bottom = top + height
        return left, top, right, bottom

    def __call__(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """The cropped images, each scaled back to its old size."""
        cropped = []
        for index, image in enumerate(images):
            box = self.box(image.size, index)
            part = image.crop(box)
            enlarged = part.resize(image.size, Image.Resampling.BICUBIC)
            cropped.append(enlarged)
        return cropped

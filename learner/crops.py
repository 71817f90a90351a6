"""The worse image m' of mDPO (arXiv 2406.11839): a random crop that keeps 1 to 20 % of the picture.

The draw belongs to the pair: the same for policy and reference, in all epochs and on every rank. The crop has the
picture's proportions and is scaled back to its size (ours), so that any family's processor makes as many image tokens
of it, and a pair that fits `model.max_length` still does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from common.config import RunConfig
from common.records import PreferencePair
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
        """Tells crops of one image apart."""
        return f"crop {self.seed} {self.low} {self.high} of "

    def box(self, size: tuple[int, int], index: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what is kept of the prompt's image number `index`, in whole pixels."""
        draw = random.Random(derive_seed(self.seed, index))
        scale = draw.uniform(self.low, self.high) ** 0.5
        width, height = (max(1, round(side * scale)) for side in size)
        left, top = draw.randint(0, size[0] - width), draw.randint(0, size[1] - height)
        return left, top, left + width, top + height

    def __call__(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """The cropped images, each of its old size."""
        return [
            image.crop(self.box(image.size, index)).resize(
                image.size, Image.Resampling.BICUBIC
            )
            for index, image in enumerate(images)
        ]


def crop_of(config: RunConfig) -> Callable[[PreferencePair], Crop | None]:
    """What a run crops: pairs whose source has the mdpo loss."""

    def crop(pair: PreferencePair) -> Crop | None:
        loss = config.learner.loss_of(pair.source)
        if loss.kind != "mdpo":
            return None
        return Crop(derive_seed(config.run.seed, "mdpo", pair.id), *loss.mdpo_crop)

    return crop

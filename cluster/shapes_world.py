"""The shapes world's plug-in of the cluster room: the only file here that knows `common.shapes`."""

from __future__ import annotations

from common.config import ShapesPrompts
from common.data.images import ImageStore
from common.records import Prompt
from common.shapes.prompts import caption_prompts


def training_prompts(
    source: ShapesPrompts, seed: int, store: ImageStore
) -> list[Prompt]:
    """Caption prompts on the first training scenes: `data.prompts.kind = shapes`."""
    is_noisy = source.references == "sft"
    return caption_prompts("train", source.count, seed, store, is_noisy)

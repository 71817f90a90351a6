"""The shapes world's plug-in of the cluster room: the only file here that knows `common.shapes`."""

from __future__ import annotations

from common.data.images import ImageStore
from common.records import Prompt
from common.shapes.prompts import caption_prompts


def training_prompts(count: int, seed: int, store: ImageStore) -> list[Prompt]:
    """Caption prompts on the first `count` training scenes: `data.prompts.kind = shapes`."""
    return caption_prompts("train", count, seed, store)

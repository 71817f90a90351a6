"""The training prompts of the rendered worlds."""

from __future__ import annotations

from cluster import shapes_world, tabletop_world
from common.config import ShapesPrompts, TabletopPrompts
from common.data.images import ImageStore
from common.records import Prompt


def world_prompts(
    source: ShapesPrompts | TabletopPrompts, seed: int, store: ImageStore
) -> list[Prompt]:
    """The prompts that `data.prompts` of these kinds stands for; `seed` is of the scenes."""
    if isinstance(source, TabletopPrompts):
        return tabletop_world.training_prompts(source, seed, store)
    return shapes_world.training_prompts(source, seed, store)

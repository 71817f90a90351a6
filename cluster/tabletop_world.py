"""World 2's plug-in of the cluster room: the only file here that knows `common.tabletop`."""

from __future__ import annotations

from common.config import TabletopPrompts
from common.data.images import ImageStore
from common.records import Prompt
from common.tabletop import prompts


def training_prompts(
    source: TabletopPrompts, seed: int, store: ImageStore
) -> list[Prompt]:
    """Conversations about the first training scenes: `data.prompts.kind = tabletop`."""
    return prompts.training_prompts(
        source.count, seed, store, source.references, source.about
    )

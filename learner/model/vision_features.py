"""Image features once per distinct image: shared by policy and reference, kept across steps while they cannot change.

    frozen                            shared and kept, by image hash          what each model still runs
    the whole vision side (LoRA)      the features                            nothing
    the vision tower                  the tower's states                      its projector
    less than the tower               nothing                                 its vision side, once per distinct image

Of a tower that trains, nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any, Literal

import torch
from cachetools import LRUCache

from common.model_parts import vision_side_parameters, vision_tower_parameters
from learner.batch.encoded import ImageKey
from learner.forward.tree import Media, TreeBatch
from learner.model.vision_tower import (
    IMAGES_PER_RUN,
    Features,
    image_features,
    replayed,
    tower_states,
)

Share = Literal["features", "tower", "nothing"]
MEMO_KEY = "vision"


class VisionShare:
    """The part of the vision side that policy and reference share, with a cache across steps.

    `kept` maps the image hashes of an entry of media to its features (or states of the tower), least recently used
    first out. `num_runs` counts the entries of media that went through the tower.

    Args:
        model: the policy's Hugging Face model, its trainable parameters already marked.
        max_bytes: bound of what is kept across steps; an entry larger than this is not kept.
    """

    def __init__(
        self,
        model: Any,
        max_bytes: int,
    ) -> None:
        self.share = what_is_shared(model)
        self.num_runs = 0
        self.kept: LRUCache[ImageKey, Features] = LRUCache(
            max_bytes, getsizeof=lambda features: features.num_bytes
        )
        self._model = model

    def of(self, batch: TreeBatch) -> list[Features] | None:
        """Features or tower states of every entry of `batch.media`; None if each model must run its own."""
        if self.share == "nothing" or not batch.media:
            return None
        # The batch remembers them, so that the reference's forward does not depend on what the cache still has.
        if MEMO_KEY not in batch.memo:
            batch.memo[MEMO_KEY] = self._look_up(batch.media)
        return batch.memo[MEMO_KEY]  # type: ignore[no-any-return]

    @torch.no_grad()
    def _look_up(self, media: Sequence[Media]) -> list[Features]:
        """Features of every entry of media, from the cache or from a run; runs go into the cache."""
        by_hash: dict[ImageKey, Features] = {}
        missing: list[Media] = []
        for entry in media:
            if entry.sha256 in self.kept:
                by_hash[entry.sha256] = self.kept[entry.sha256]
            else:
                missing.append(entry)
        self.num_runs += len(missing)
        for start in range(0, len(missing), IMAGES_PER_RUN):
            chunk = missing[start : start + IMAGES_PER_RUN]
            for entry, features in zip(chunk, self._run(chunk), strict=True):
                by_hash[entry.sha256] = features.unshared()
        # After all lookups: putting an entry in may push out another of this batch.
        for entry in missing:
            features = by_hash[entry.sha256]
            # cachetools raises ValueError for an entry that can never fit.
            if features.num_bytes <= self.kept.maxsize:
                self.kept[entry.sha256] = features
        return [by_hash[entry.sha256] for entry in media]

    def _run(self, media: Sequence[Media]) -> list[Features]:
        if self.share == "features":
            return image_features(self._model, media)
        return tower_states(self._model, media)


def what_is_shared(model: Any) -> Share:
    """What policy and reference can share, by the parts of the vision side that train (see the table above)."""
    side = vision_side_parameters(model)
    if not any(parameter.requires_grad for parameter in side):
        return "features"
    tower = vision_tower_parameters(model)
    if any(parameter.requires_grad for parameter in tower):
        return "nothing"
    return "tower"


def encoder_outputs(
    model: Any,
    batch: TreeBatch,
    shared: VisionShare | None,
) -> dict[str, Any] | None:
    """Image features that a model's forward takes in place of pixels (`mm_encoder_outputs`); None for text alone.

    Features are in the order of the row's image tokens.
    """
    if not batch.media:
        return None
    features = _features(model, batch, shared)
    # One entry per prompt: prompts with the same images repeat it.
    by_prompt = [features[index] for index in batch.media_of if index is not None]
    pooled: list[torch.Tensor] = []
    for prompt_features in by_prompt:
        pooled += prompt_features.pooled
    # From levels per prompt to one list per level, over all prompts.
    levels: list[list[torch.Tensor]] = []
    for level_by_prompt in zip(*[entry.levels for entry in by_prompt], strict=True):
        levels.append(list(chain.from_iterable(level_by_prompt)))
    in_one = by_prompt[0].in_one
    output = SimpleNamespace(
        pooler_output=torch.stack(pooled) if in_one else pooled,
        deepstack_features=levels,
    )
    return {"image": output}


def _features(
    model: Any,
    batch: TreeBatch,
    shared: VisionShare | None,
) -> list[Features]:
    """Image features of every entry of `batch.media`, as this model's projector makes them."""
    from_share = None if shared is None else shared.of(batch)
    if shared is None or from_share is None:
        return image_features(model, batch.media)
    if shared.share == "features":
        return from_share
    # Only the tower is shared: its states are replayed to this model's projector.
    with replayed(model, from_share):
        return image_features(model, batch.media)

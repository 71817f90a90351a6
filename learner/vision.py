"""Image features once per distinct image: shared by policy and reference, kept across steps while they cannot change.

    what is frozen                          what is shared and kept (by image hash)     what each model runs
    the whole vision side (LoRA)            the features                                nothing
    the tower                               the tower's states                          its own projector
    less                                    nothing; one run per distinct image         its own vision side

Nothing is kept of a tower that trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import torch
from cachetools import LRUCache

from learner.tower import (
    TOWER_IMAGES,
    Features,
    image_features,
    replayed,
    tower_parameters,
    tower_states,
)
from learner.tree import Media, TreeBatch

Share = Literal["features", "tower", "nothing"]


class VisionShare:
    """What policy and reference share of the vision side.

    Args:
        model: the policy's Hugging Face model, its trainable parameters already marked.
        max_bytes: of what is kept across steps, least recently used first out.
    """

    def __init__(self, model: Any, max_bytes: int) -> None:
        self.share = what_is_shared(model)
        self._model = model
        self._kept: LRUCache[tuple[str, ...], Features] = LRUCache(
            max_bytes, getsizeof=lambda features: features.num_bytes
        )
        self.num_runs = 0
        """How many entries of media went through the tower."""

    def of(self, batch: TreeBatch) -> list[Features] | None:
        """Features or tower states of every entry of `batch.media`; None where models must run their own."""
        if self.share == "nothing" or not batch.media:
            return None
        if "vision" not in batch.memo:
            batch.memo["vision"] = self._look_up(batch.media)
        return batch.memo["vision"]  # type: ignore[no-any-return]

    @torch.no_grad()
    def _look_up(self, media: Sequence[Media]) -> list[Features]:
        missing = [each for each in media if each.sha256 not in self._kept]
        self.num_runs += len(missing)
        run = image_features if self.share == "features" else tower_states
        made: dict[tuple[str, ...], Features] = {}
        for start in range(0, len(missing), TOWER_IMAGES):
            part = missing[start : start + TOWER_IMAGES]
            made |= {
                each.sha256: found.alone()
                for each, found in zip(part, run(self._model, part), strict=True)
            }
        found = [made.get(each.sha256) or self._kept[each.sha256] for each in media]
        for each, features in zip(media, found, strict=True):
            # LRUCache raises ValueError for an entry larger than the whole cache.
            if features.num_bytes <= self._kept.maxsize:
                self._kept[each.sha256] = features
        return found


def what_is_shared(model: Any) -> Share:
    """By what of the vision side trains (see the table above)."""
    language = {id(parameter) for parameter in language_model(model).parameters()}
    vision = [
        (name, p) for name, p in model.model.named_parameters() if id(p) not in language
    ]
    if not any(parameter.requires_grad for _, parameter in vision):
        return "features"
    return (
        "nothing"
        if any(parameter.requires_grad for parameter in tower_parameters(model))
        else "tower"
    )


def language_model(model: Any) -> Any:
    """The decoder without its head."""
    return model.model.language_model


def encoder_outputs(
    model: Any, batch: TreeBatch, shared: VisionShare | None
) -> dict[str, Any] | None:
    """What the model's forward takes in place of pixels, in the order of the row's image tokens."""
    if not batch.media:
        return None
    found = shared.of(batch) if shared is not None else None
    if found is None:
        found = image_features(model, batch.media)
    elif shared is not None and shared.share == "tower":
        with replayed(model, found):
            found = image_features(model, batch.media)
    order = [found[number] for number in batch.media_of if number is not None]
    pooled = [tensor for features in order for tensor in features.pooled]
    levels = [
        [each for features in order for each in features.levels[i]]
        for i in range(len(order[0].levels))
    ]
    return {"image": SimpleNamespace(pooler_output=pooled, deepstack_features=levels)}

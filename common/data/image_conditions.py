"""A pair under other image conditions: its true images, blank ones, another pair's, none.

What a policy still ranks right without the true images, it knows from language, not from sight. A condition changes
the prompt, so `prompt_token_ids` (the prompt as the engine ran it) no longer hold and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from PIL import Image

from common.data import images
from common.data.images import ImageStore
from common.records import ImageRef, PreferencePair

GREY = (127, 127, 127)

Condition: TypeAlias = Literal["true", "blank", "shuffled"]
"""What a policy sees in the grounding gates: the pair's image, a grey one, or that of another pair."""

CONDITIONS: tuple[Condition, ...] = get_args(Condition)

ChangeImages = Callable[[PreferencePair], PreferencePair | None]
"""Puts a pair under an image condition; None where the condition does not exist for this pair."""


def blank_images(store: ImageStore) -> ChangeImages:
    """Replace every image by a grey one of the same size, which keeps the number of image tokens.

    The change raises Refused for a pair whose images cannot be read.

    Args:
        store: where the grey images are put, one per size.
    """
    grey_of_size: dict[tuple[int, int], ImageRef] = {}

    def blank(pair: PreferencePair) -> PreferencePair:
        refs = []
        for ref in pair.prompt.images:
            size = images.read(ref).size
            if size not in grey_of_size:
                grey_of_size[size] = store.add(Image.new("RGB", size, GREY))
            refs.append(grey_of_size[size])
        return _with_images(pair, tuple(refs))

    return blank


def shuffled_images(pairs: Sequence[PreferencePair]) -> ChangeImages:
    """Give every pair the images of another one of `pairs` with as many images but different ones.

    The change gives None for a pair when there is no such other pair.
    """
    # Prompts share images, so the exchange is between distinct sets of images: each takes the next one of its size.
    sets_by_size: dict[int, dict[tuple[str, ...], tuple[ImageRef, ...]]] = {}
    for pair in pairs:
        refs = pair.prompt.images
        sets_by_size.setdefault(len(refs), {})[_hashes(refs)] = refs
    other_images: dict[tuple[str, ...], tuple[ImageRef, ...]] = {}
    for sets in sets_by_size.values():
        if len(sets) < 2:
            continue
        keys = list(sets)
        next_keys = [*keys[1:], keys[0]]
        for key, next_key in zip(keys, next_keys, strict=True):
            other_images[key] = sets[next_key]

    def shuffled(pair: PreferencePair) -> PreferencePair | None:
        refs = other_images.get(_hashes(pair.prompt.images))
        if refs is None:
            return None
        return _with_images(pair, refs)

    return shuffled


def without_images(pair: PreferencePair) -> PreferencePair:
    """The same pair asked without images: their parts are taken out of the messages."""
    messages = []
    for message in pair.prompt.messages:
        parts = tuple(part for part in message.parts if part.kind != "image")
        messages.append(replace(message, parts=parts))
    prompt = replace(pair.prompt, messages=tuple(messages), images=())
    return replace(pair, prompt=prompt, prompt_token_ids=None)


def _with_images(pair: PreferencePair, refs: tuple[ImageRef, ...]) -> PreferencePair:
    prompt = replace(pair.prompt, images=refs)
    return replace(pair, prompt=prompt, prompt_token_ids=None)


def _hashes(refs: Sequence[ImageRef]) -> tuple[str, ...]:
    return tuple(ref.sha256 for ref in refs)

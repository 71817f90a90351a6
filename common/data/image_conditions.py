"""Shows a pair with other images: blank ones, those of another pair, or none.

A policy that still ranks the two answers right without the true images knows it from language, not from sight. The
changed prompt is another one than the engine ran, so the pair loses its `prompt_token_ids`.
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
"""What a policy sees in the grounding gates: the pair's images, grey ones, or those of another pair."""

CONDITIONS: tuple[Condition, ...] = get_args(Condition)

ChangeImages = Callable[[PreferencePair], PreferencePair | None]
"""Gives a pair its other images; None for a pair to which this cannot be done."""

Refs: TypeAlias = tuple[ImageRef, ...]
Hashes: TypeAlias = tuple[str, ...]
"""The images of a prompt, and their hashes. Paths may differ for equal images, hashes do not."""


def blank_images(store: ImageStore) -> ChangeImages:
    """Replaces every image by a grey one of the same size, so that the number of image tokens stays.

    The returned function raises Refused for a pair whose images cannot be read.

    Args:
        store: where the grey images are put, one per size.
    """
    grey_of_size: dict[tuple[int, int], ImageRef] = {}

    def blank(pair: PreferencePair) -> PreferencePair:
        refs = []
        for ref in pair.prompt.images:
            size = images.read(ref).size
            if size not in grey_of_size:
                grey = Image.new("RGB", size, GREY)
                grey_of_size[size] = store.add(grey)
            refs.append(grey_of_size[size])
        return _with_images(pair, tuple(refs))

    return blank


def shuffled_images(pairs: Sequence[PreferencePair]) -> ChangeImages:
    """Gives every pair the images of another one of `pairs`: as many images, but different ones.

    The returned function gives None for a pair when there is no such other pair.
    """
    # Many pairs share their images. An exchange between pairs could give a pair its own images back, so the exchange is
    # between distinct sets of images.
    sets_by_count: dict[int, dict[Hashes, Refs]] = {}
    for pair in pairs:
        refs = pair.prompt.images
        sets_of_count = sets_by_count.setdefault(len(refs), {})
        sets_of_count[_hashes(refs)] = refs
    other_images: dict[Hashes, Refs] = {}
    for sets in sets_by_count.values():
        # A single set would be exchanged with itself.
        if len(sets) < 2:
            continue
        keys = list(sets)
        next_keys = [*keys[1:], keys[0]]
        for key, next_key in zip(keys, next_keys, strict=True):
            other_images[key] = sets[next_key]

    def shuffled(pair: PreferencePair) -> PreferencePair | None:
        hashes = _hashes(pair.prompt.images)
        if hashes not in other_images:
            return None
        return _with_images(pair, other_images[hashes])

    return shuffled


def without_images(pair: PreferencePair) -> PreferencePair:
    """The same pair asked without images: their parts are taken out of the messages."""
    messages = []
    for message in pair.prompt.messages:
        texts = [part for part in message.parts if part.kind != "image"]
        messages.append(replace(message, parts=tuple(texts)))
    prompt = replace(pair.prompt, messages=tuple(messages), images=())
    return replace(pair, prompt=prompt, prompt_token_ids=None)


def _with_images(pair: PreferencePair, refs: Refs) -> PreferencePair:
    prompt = replace(pair.prompt, images=refs)
    return replace(pair, prompt=prompt, prompt_token_ids=None)


def _hashes(refs: Refs) -> Hashes:
    return tuple(ref.sha256 for ref in refs)

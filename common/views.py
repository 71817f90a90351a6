"""The same pairs seen otherwise: behind a blank image, another pair's image, no image. What survives is not sight.

Views change the prompt only, so token ids of the prompt as the engine ran it no longer hold and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from PIL import Image

from common import images
from common.images import ImageStore
from common.records import ImageRef, PreferencePair

GREY = (127, 127, 127)

Condition: TypeAlias = Literal["true", "blank", "shuffled"]
"""What a policy sees in the grounding gates: the pair's image, a grey one, or that of another pair."""

CONDITIONS: tuple[Condition, ...] = get_args(Condition)

View = Callable[[PreferencePair], PreferencePair | None]
"""The pair seen otherwise; None when there is no such view of it."""


def blank_view(store: ImageStore) -> View:
    """Every image becomes a grey one of its own size, kept in `store`, so the number of image tokens stays."""
    blanks: dict[tuple[int, int], ImageRef] = {}

    def blank(ref: ImageRef) -> ImageRef:
        size = images.read(ref).size
        if size not in blanks:
            blanks[size] = store.add(Image.new("RGB", size, GREY))
        return blanks[size]

    return lambda pair: _with_images(pair, tuple(map(blank, pair.prompt.images)))


def shuffled_view(pairs: Sequence[PreferencePair]) -> View:
    """Every pair gets the images of another of `pairs`, never its own; None when no other holds as many."""
    by_number: dict[int, dict[tuple[str, ...], tuple[ImageRef, ...]]] = {}
    for pair in pairs:
        by_number.setdefault(len(pair.prompt.images), {})[
            _content(pair.prompt.images)
        ] = pair.prompt.images
    stranger: dict[tuple[str, ...], tuple[ImageRef, ...]] = {}
    for found in by_number.values():
        keys, refs = list(found), list(found.values())
        if len(keys) > 1:
            stranger.update(zip(keys, [*refs[1:], refs[0]], strict=True))

    def shuffled(pair: PreferencePair) -> PreferencePair | None:
        other = stranger.get(_content(pair.prompt.images))
        return None if other is None else _with_images(pair, other)

    return shuffled


def text_view(pair: PreferencePair) -> PreferencePair:
    """The prompt without images and without the places where they stood."""
    messages = tuple(
        replace(
            message, parts=tuple(part for part in message.parts if part.kind != "image")
        )
        for message in pair.prompt.messages
    )
    return replace(
        pair,
        prompt=replace(pair.prompt, messages=messages, images=()),
        prompt_token_ids=None,
    )


def _with_images(pair: PreferencePair, refs: tuple[ImageRef, ...]) -> PreferencePair:
    return replace(
        pair, prompt=replace(pair.prompt, images=refs), prompt_token_ids=None
    )


def _content(refs: Sequence[ImageRef]) -> tuple[str, ...]:
    return tuple(ref.sha256 for ref in refs)

"""A 3 x 3 grid in words, and the split that a layout belongs to.

A hash of the *layout*, a canonical text of what is where, decides the split: of ten buckets, 0-7 are train, 8 is
validation and 9 is test. How a scene is drawn plays no part, so no picture of a test layout can occur in training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

Split: TypeAlias = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
"""Cells 0-8 in reading order."""
GRID = 3
NUM_CELLS = GRID * GRID
NUM_BUCKETS = 10
_BUCKETS: Mapping[Split, frozenset[int]] = {
    "train": frozenset(range(8)),
    "validation": frozenset({8}),
    "test": frozenset({9}),
}


def split_of_layout(layout: str) -> Split:
    """The one split that a layout belongs to."""
    bucket = stable_hash(layout) % NUM_BUCKETS
    for split in SPLITS:
        if bucket in _BUCKETS[split]:
            return split
    raise AssertionError("every bucket belongs to a split")


def stable_hash(text: str) -> int:
    """64 bits of a text, the same on every machine."""
    # Python's own `hash` of a text differs from process to process.
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def check_distinct(what: str, values: tuple[object, ...]) -> None:
    """Refuse (ValueError) a scene in which two things share a value."""
    if len(set(values)) != len(values):
        raise ValueError(f"no two things of a scene may share a {what}; got {values}")

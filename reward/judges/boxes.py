"""Boxes in answers and rows, and how much two of them overlap.

Read in a text, in this order; the first one counts:

    <loc0010><loc0020><loc0300><loc0400>     PaliGemma: y, x, y, x of 1024
    (10, 20), (300, 400)                     Qwen-VL, with or without tags around
    [10, 20, 300, 400]                       lists, in JSON too
    x1: 10, y1: 20, x2: 300, y2: 400         also xmin …, left …
    10 20 300 400                            where the text holds no other number
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

LOC_SCALE = 1024
_N = r"\s*(-?\d+(?:\.\d+)?)\s*"
_LOC = re.compile(r"<loc(\d{4})>" * 4)
_CORNERS = re.compile(rf"\({_N},{_N}\)\s*,?\s*\({_N},{_N}\)")
_LIST = re.compile(rf"[\[(]{_N}[,\s]{_N}[,\s]{_N}[,\s]{_N}[\])]")
_ANY = re.compile(r"-?\d+(?:\.\d+)?")
_SIZED = ("x", "y", "width", "height")
_NAMES = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("left", "top", "right", "bottom"),
    _SIZED,
)


class Box(NamedTuple):
    """Two corners."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def area(self) -> float:
        """0 where the second corner does not lie behind the first."""
        width = max(0.0, self.x2 - self.x1)
        height = max(0.0, self.y2 - self.y1)
        return width * height


def iou(first: Box, second: Box) -> float:
    """Intersection over union, 0 for boxes without an area."""
    common = Box(
        x1=max(first.x1, second.x1),
        y1=max(first.y1, second.y1),
        x2=min(first.x2, second.x2),
        y2=min(first.y2, second.y2),
    )
    shared = common.area
    # Also of two points, whose union is nothing.
    if shared == 0:
        return 0.0
    union = first.area + second.area - shared
    return shared / union


def box_of(value: Any, order: str) -> Box | None:
    """Four finite numbers of a row as a box; None for anything else."""
    if not isinstance(value, list | tuple):
        return None
    if len(value) != 4:
        return None
    if not all(map(_is_number, value)):
        return None
    return _ordered(value, order)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def read_box(
    text: str,
    order: str,
    scale: str,
) -> tuple[Box, str] | None:
    """The first box of a text with its scale; None when there is none.

    Args:
        order: `xyxy`, `xywh` or `cxcywh`, of texts that do not say it themselves.
        scale: the same for `pixels`, `unit` or `thousand`.
    """
    located = _LOC.search(text)
    if located:
        y1, x1, y2, x2 = map(int, located.groups())
        box = _ordered((x1, y1, x2, y2), "xyxy")
        return _divided(box, LOC_SCALE, LOC_SCALE), "unit"
    corners = _CORNERS.search(text)
    if corners:
        return _ordered(corners.groups(), "xyxy"), scale
    listed = _LIST.search(text)
    if listed:
        return _ordered(listed.groups(), order), scale
    for names in _NAMES:
        values = _values_of(text, names)
        if values is not None:
            written_order = "xywh" if names is _SIZED else "xyxy"
            return _ordered(values, written_order), scale
    numbers = _ANY.findall(text)
    if len(numbers) != 4:
        return None
    return _ordered(numbers, order), scale


def to_unit(
    box: Box,
    scale: str,
    size: tuple[int, int],
) -> Box:
    """A box as shares of a picture of `size` (width, height)."""
    if scale == "unit":
        return box
    if scale == "thousand":
        return _divided(box, 1000, 1000)
    width, height = size
    return _divided(box, width, height)


def _divided(
    box: Box,
    width: int,
    height: int,
) -> Box:
    return Box(
        x1=box.x1 / width,
        y1=box.y1 / height,
        x2=box.x2 / width,
        y2=box.y2 / height,
    )


def _values_of(text: str, names: tuple[str, ...]) -> list[str] | None:
    """The number behind every one of the names, None when one is missing."""
    values: list[str] = []
    for name in names:
        pattern = rf"\b{name}\b[\"']?\s*[:=]{_N}"
        match = re.search(pattern, text, re.IGNORECASE)
        if match is None:
            return None
        value = match.group(1)
        values.append(value)
    return values


def _ordered(numbers: Sequence[Any], order: str) -> Box:
    """Four numbers in this order as a box."""
    a, b, c, d = map(float, numbers)
    if order == "xyxy":
        return Box(a, b, c, d)
    # The others end with a size.
    width = c
    height = d
    if order == "cxcywh":
        a -= width / 2
        b -= height / 2
    return Box(a, b, a + width, b + height)

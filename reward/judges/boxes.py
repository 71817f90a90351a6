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
from typing import Any, TypeAlias

Box: TypeAlias = tuple[float, float, float, float]
"""x and y of two corners."""

_N = r"\s*(-?\d+(?:\.\d+)?)\s*"
_LOC = re.compile(r"<loc(\d{4})>" * 4)
_CORNERS = re.compile(rf"\({_N},{_N}\)\s*,?\s*\({_N},{_N}\)")
_LIST = re.compile(rf"[\[(]{_N}[,\s]{_N}[,\s]{_N}[,\s]{_N}[\])]")
_ANY = re.compile(r"-?\d+(?:\.\d+)?")
_NAMES = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("left", "top", "right", "bottom"),
    ("x", "y", "width", "height"),
)
LOC_SCALE = 1024


def iou(first: Box, second: Box) -> float:
    """Intersection over union, 0 for boxes without an area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / (_area(first) + _area(second) - common)


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def box_of(value: Any, order: str) -> Box | None:
    """Four finite numbers of a row as a box; None for anything else."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    for number in value:
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not math.isfinite(number):
            return None
    return _floats(value, order)


def read_box(text: str, order: str, scale: str) -> tuple[Box, str] | None:
    """The first box of a text with its scale; None when there is none.

    Args:
        order: `xyxy`, `xywh` or `cxcywh`, of texts that do not say it themselves.
        scale: the same for `pixels`, `unit` or `thousand`.
    """
    located = _LOC.search(text)
    if located:
        y1, x1, y2, x2 = (int(group) / LOC_SCALE for group in located.groups())
        return (x1, y1, x2, y2), "unit"
    corners = _CORNERS.search(text)
    if corners:
        return _floats(corners.groups(), "xyxy"), scale
    listed = _LIST.search(text)
    if listed:
        return _floats(listed.groups(), order), scale
    for names in _NAMES:
        values = _values_of(text, names)
        if values is not None:
            own_order = "xywh" if "width" in names else "xyxy"
            return _floats(values, own_order), scale
    numbers = _ANY.findall(text)
    if len(numbers) != 4:
        return None
    return _floats(numbers, order), scale


def to_unit(box: Box, scale: str, size: tuple[int, int]) -> Box:
    """A box as shares of a picture of `size` (width, height)."""
    if scale == "unit":
        return box
    width, height = size if scale == "pixels" else (1000, 1000)
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def _values_of(text: str, names: tuple[str, ...]) -> list[str] | None:
    """The number behind every one of the names, None when one is missing."""
    values: list[str] = []
    for name in names:
        match = re.search(rf"\b{name}\b[\"']?\s*[:=]{_N}", text, re.IGNORECASE)
        if match is None:
            return None
        values.append(match.group(1))
    return values


def _floats(numbers: Sequence[Any], order: str) -> Box:
    """Four numbers in this order as two corners."""
    a, b, c, d = map(float, numbers)
    if order == "xywh":
        return a, b, a + c, b + d
    if order == "cxcywh":
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return a, b, c, d

"""Draws a scene: 60 x 60 pixels, small icons of low contrast on a noisy grey table.

Pieces of a thing lie side by side in their cell and overlap where there are three. Contrast is drawn per thing. The
scene's seed decides all variation, so the same scene gives the same pixels.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.tabletop.scenes import MAX_NUMBER, Scene, Thing
from common.worlds.scenes import GRID

CELL_PIXELS = 20
IMAGE_SIZE = GRID * CELL_PIXELS
ICON_SIDE = 11
"""Pixels; a knob of docs/world2.md, as are the three below."""
MIN_CONTRAST = 0.3
NOISE = 20.0
"""Standard deviation of the noise of a pixel, of 255."""
TINT = 50.0
"""Standard deviation of what the light adds to a thing's red, green and blue, of 255."""
MAX_SHIFT = 1.5
"""Pixels beside the place of a piece, in x and in y."""
TABLE_GREYS = (125, 165)
SPREADS = (0.0, 4.5, 5.5)
"""How far from the center of its cell the outer pieces of one, two and three lie, in pixels."""

Pixels = NDArray[np.float64]

_RGB = {
    "red": (225, 40, 40),
    "green": (30, 170, 60),
    "blue": (40, 70, 230),
    "yellow": (240, 220, 40),
    "white": (255, 255, 255),
    "black": (10, 10, 10),
}
_ICONS = {
    "book": (
        "#######",
        "#..#..#",
        "#..#..#",
        "#..#..#",
        "#..#..#",
        "#..#..#",
        "#######",
    ),
    "lamp": (
        "..###..",
        ".#####.",
        "#######",
        "...#...",
        "...#...",
        "...#...",
        ".#####.",
    ),
    "bowl": (
        ".......",
        ".......",
        "#.....#",
        "#######",
        "#######",
        ".#####.",
        "..###..",
    ),
    "cup": (
        "#####..",
        "#####..",
        "#######",
        "#####.#",
        "#######",
        "#####..",
        "#####..",
    ),
    "plate": (
        "..###..",
        ".#...#.",
        "#.###.#",
        "#.###.#",
        "#.###.#",
        ".#...#.",
        "..###..",
    ),
    "apple": (
        "...##..",
        "...#...",
        ".##.##.",
        "#######",
        "#######",
        "#######",
        ".#####.",
    ),
    "fork": (
        "#..#..#",
        "#..#..#",
        "#######",
        "...#...",
        "...#...",
        "...#...",
        "...#...",
    ),
    "spoon": (
        "..##...",
        ".####..",
        ".####..",
        "..##...",
        "..#....",
        "..#....",
        "..#....",
    ),
}


def render(scene: Scene) -> Image.Image:
    """Draw the scene as an RGB image of `IMAGE_SIZE` squared."""
    # The random draws and their order decide the pixels of every picture.
    rng = np.random.default_rng(scene.seed)
    size = (IMAGE_SIZE, IMAGE_SIZE, 3)
    table = np.full(size, rng.uniform(*TABLE_GREYS))
    for thing in scene.things:
        _draw(table, thing, rng)
    table += rng.normal(0.0, NOISE, size)
    return Image.fromarray(table.clip(0, 255).round().astype(np.uint8))


def blank(grey: int = 145) -> Image.Image:
    """An empty table without noise, for blind tests."""
    return Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (grey, grey, grey))


def _draw(table: Pixels, thing: Thing, rng: np.random.Generator) -> None:
    row, column = divmod(thing.cell, GRID)
    tint = rng.normal(0.0, TINT, 3)
    colour = np.clip(_RGB[thing.colour] + tint, 0, 255)
    contrast = rng.uniform(MIN_CONTRAST, 1.0)
    spread = SPREADS[thing.number - 1]
    for piece in range(thing.number):
        # From -1 at the left to 1 at the right.
        side = 0.0
        if thing.number > 1:
            side = 2 * piece / (thing.number - 1) - 1
        # Every other piece lies higher, so that three have room.
        lift = spread * (0.5 if piece % 2 else -0.5)
        x = (column + 0.5) * CELL_PIXELS + side * spread
        y = (row + 0.5) * CELL_PIXELS + lift
        shift_x, shift_y = rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2)
        cover = contrast * _icon(thing.kind)
        _paste(table, cover, colour, round(x + shift_x), round(y + shift_y))


def _paste(table: Pixels, cover: Pixels, colour: Pixels, x: int, y: int) -> None:
    """Blend a colour into the table where the icon covers it; (x, y) is the icon's center."""
    left = min(max(x - ICON_SIDE // 2, 0), IMAGE_SIZE - ICON_SIDE)
    top = min(max(y - ICON_SIDE // 2, 0), IMAGE_SIZE - ICON_SIDE)
    part = table[top : top + ICON_SIDE, left : left + ICON_SIDE]
    part += cover[:, :, None] * (colour - part)


@cache
def _icon(kind: str) -> Pixels:
    """How much of every pixel an icon covers, (`ICON_SIDE`, `ICON_SIDE`), 0 to 1."""
    rows = []
    for line in _ICONS[kind]:
        rows.append([255 * (mark == "#") for mark in line])
    bitmap = Image.fromarray(np.asarray(rows, dtype=np.uint8))
    scaled = bitmap.resize((ICON_SIDE, ICON_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(scaled, dtype=np.float64) / 255


assert len(SPREADS) == MAX_NUMBER

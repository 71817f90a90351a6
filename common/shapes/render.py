"""Draws a scene: 72 x 72 pixels, a square of 24 pixels per grid cell. The scene's seed decides all variation.

Background grey, the position inside of the cell and the radius vary a little, so that a policy cannot learn a layout by
its exact pixels.
"""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

from common.shapes.scenes import Scene
from common.worlds.scenes import GRID

CELL_PIXELS = 24
IMAGE_SIZE = GRID * CELL_PIXELS
MAX_SHIFT = 1.2
"""An object's center lies at most so many pixels beside the center of its cell, in x and in y."""
MIN_RADIUS = 8.0
MAX_RADIUS = 10.0
RING_WIDTH = 4
CROSS_ARM = 0.3
"""Half of the width of a cross's bars, of its radius."""
STAR_INNER = 0.42
"""Radius of the inner corners of a star, of its radius."""

_RGB = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 50),
    "purple": (150, 60, 190),
    "black": (30, 30, 30),
}


def render(scene: Scene) -> Image.Image:
    """Draw the scene as an RGB image of `IMAGE_SIZE` squared; the same scene gives the same pixels."""
    # The random draws and their order decide the pixels of every picture.
    rng = random.Random(scene.seed)
    grey = rng.randint(205, 255)
    image = blank(grey)
    draw = ImageDraw.Draw(image)
    for item in scene.objects:
        row, column = divmod(item.cell, GRID)
        center_x = (column + 0.5) * CELL_PIXELS
        center_y = (row + 0.5) * CELL_PIXELS
        x = center_x + rng.uniform(-MAX_SHIFT, MAX_SHIFT)
        y = center_y + rng.uniform(-MAX_SHIFT, MAX_SHIFT)
        radius = rng.uniform(MIN_RADIUS, MAX_RADIUS)
        _draw_shape(draw, item.shape, x, y, radius, _RGB[item.colour])
    return image


def blank(grey: int = 230) -> Image.Image:
    """A plain grey picture, for blind tests."""
    return Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (grey, grey, grey))


def _draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: str,
    x: float,
    y: float,
    radius: float,
    fill: tuple[int, int, int],
) -> None:
    """Draw one shape around (x, y), in pixels from the top left of the picture."""
    left = x - radius
    right = x + radius
    top = y - radius
    bottom = y + radius
    box = (left, top, right, bottom)
    match shape:
        case "circle":
            draw.ellipse(box, fill=fill)
        case "square":
            draw.rectangle(box, fill=fill)
        case "triangle":
            corners = [(x, top), (left, bottom), (right, bottom)]
            draw.polygon(corners, fill=fill)
        case "ring":
            draw.ellipse(box, outline=fill, width=RING_WIDTH)
        case "cross":
            arm = radius * CROSS_ARM
            draw.rectangle((left, y - arm, right, y + arm), fill=fill)
            draw.rectangle((x - arm, top, x + arm, bottom), fill=fill)
        case "star":
            draw.polygon(_star(x, y, radius), fill=fill)
        case _:
            raise ValueError(
                f"cannot draw a {shape!r}: add it to _draw_shape beside scenes.SHAPES"
            )


def _star(
    x: float,
    y: float,
    radius: float,
) -> list[tuple[float, float]]:
    """Corners of a five-pointed star, outer and inner ones in turn, the first one at the top."""
    corners = []
    for number in range(10):
        angle = math.pi * number / 5 - math.pi / 2
        is_outer = number % 2 == 0
        reach = radius if is_outer else radius * STAR_INNER
        corner_x = x + reach * math.cos(angle)
        corner_y = y + reach * math.sin(angle)
        corners.append((corner_x, corner_y))
    return corners

"""Drawing a scene: 72 x 72 pixels, one 24-pixel square per grid cell, everything decided by the scene's seed."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

from common.shapes.scenes import GRID, Scene

CELL_PIXELS = 24
IMAGE_SIZE = GRID * CELL_PIXELS

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
    # The order of the draws decides the pixels of every picture.
    rng = random.Random(scene.seed)
    grey = rng.randint(205, 255)
    image = blank(grey)
    draw = ImageDraw.Draw(image)
    for item in scene.objects:
        row, column = divmod(item.cell, GRID)
        x = (column + 0.5) * CELL_PIXELS + rng.uniform(-1.2, 1.2)
        y = (row + 0.5) * CELL_PIXELS + rng.uniform(-1.2, 1.2)
        radius = rng.uniform(8.0, 10.0)
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
    box = (x - radius, y - radius, x + radius, y + radius)
    match shape:
        case "circle":
            draw.ellipse(box, fill=fill)
        case "square":
            draw.rectangle(box, fill=fill)
        case "triangle":
            draw.polygon(
                [(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)],
                fill=fill,
            )
        case "ring":
            draw.ellipse(box, outline=fill, width=4)
        case "cross":
            arm = radius * 0.3
            draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
            draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
        case "star":
            draw.polygon(_star(x, y, radius), fill=fill)
        case _:
            raise ValueError(
                f"cannot draw a {shape!r}: add it to _draw_shape beside scenes.SHAPES"
            )


def _star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a five-pointed star, outer and inner ones in turn, the first one at the top."""
    points = []
    for k in range(10):
        angle = math.pi * k / 5 - math.pi / 2
        reach = radius if k % 2 == 0 else radius * 0.42
        points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return points

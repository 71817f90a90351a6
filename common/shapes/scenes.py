"""Scenes of the shapes world: what is in a picture, where, and which things tend to come together.

A scene is a handful of objects on a 3 x 3 grid, each shape at most once. Some shapes are *anchors*: in biased data
their usual *partner* is there too (circle with square, triangle with star, cross with ring). A policy that is trained
on such data learns this as a prior, and names the partner when it is absent.

A scene's *layout* is the shape, colour and cell of every object; it decides the split (`common.worlds.scenes`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from common.worlds.scenes import (
    NUM_CELLS,
    PLACES,
    Split,
    check_distinct,
    split_of_layout,
    stable_hash,
)

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
PARTNERS: Mapping[str, str] = {"circle": "square", "triangle": "star", "cross": "ring"}
"""Anchor shape -> the shape that usually comes with it."""

TRAIN_BIAS = 0.7
"""How often an anchor's partner joins it in the scenes of the train split."""
MAX_DRAWN = 3
"""Most shapes of a scene, before partners join them."""


@dataclass(frozen=True, slots=True, order=True)
class SceneObject:
    """One object; `cell` counts 0-8 in reading order and is named by `PLACES[cell]`."""

    cell: int
    shape: str
    colour: str

    def __post_init__(self) -> None:
        is_known = self.shape in SHAPES and self.colour in COLOURS
        is_on_grid = 0 <= self.cell < NUM_CELLS
        if not is_known or not is_on_grid:
            raise ValueError(
                f"an object needs a shape of {SHAPES}, a colour of {COLOURS} and a cell in 0-{NUM_CELLS - 1}; "
                f"got {self.colour!r} {self.shape!r} in cell {self.cell!r}"
            )

    @property
    def place(self) -> str:
        """The cell in words."""
        return PLACES[self.cell]


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects in reading order, and the seed of all small variations in how they are drawn."""

    objects: tuple[SceneObject, ...]
    seed: int

    def __post_init__(self) -> None:
        if list(self.objects) != sorted(self.objects):
            raise ValueError(
                "scene objects must be in reading order (by cell); sort them first"
            )
        check_distinct("cell", self.cells)
        check_distinct("shape", self.shapes)

    @property
    def shapes(self) -> tuple[str, ...]:
        """The shapes present, in reading order."""
        return tuple(item.shape for item in self.objects)

    @property
    def cells(self) -> tuple[int, ...]:
        """The occupied cells, in rising order."""
        return tuple(item.cell for item in self.objects)

    @property
    def layout(self) -> str:
        """What is where, as a canonical text; scenes that differ only in their drawing share it."""
        parts = []
        for item in self.objects:
            parts.append(f"{item.cell}:{item.colour}:{item.shape}")
        return ";".join(parts)

    @property
    def id(self) -> str:
        """Hash of the layout, and the rendering seed."""
        return f"{stable_hash(self.layout):016x}-{self.seed:08x}"

    @property
    def absent_partners(self) -> tuple[str, ...]:
        """The missing partners of anchors in the scene: what a biased policy hallucinates."""
        absent = []
        for shape in self.shapes:
            partner = PARTNERS.get(shape)
            if partner and partner not in self.shapes:
                absent.append(partner)
        return tuple(absent)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready ground truth, as a judge receives it."""
        objects = []
        for item in self.objects:
            fields = {"shape": item.shape, "colour": item.colour, "cell": item.cell}
            objects.append(fields)
        return {"seed": self.seed, "objects": objects}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scene:
        """The scene that `to_dict` made a dict of.

        Raises:
            KeyError, TypeError, ValueError: `data` describes no scene.
        """
        objects = []
        for fields in data["objects"]:
            item = SceneObject(
                cell=int(fields["cell"]),
                shape=str(fields["shape"]),
                colour=str(fields["colour"]),
            )
            objects.append(item)
        seed = int(data["seed"])
        return cls(tuple(sorted(objects)), seed)


def sample_scene(
    rng: random.Random,
    bias: float = 0.0,
    max_drawn: int = MAX_DRAWN,
) -> Scene:
    """A random scene: 1 to `max_drawn` different shapes; each anchor then gets its partner with probability `bias`."""
    # The draws and their order decide every scene of every seed, and with them all published figures.
    num_drawn = rng.randint(1, max_drawn)
    shapes = rng.sample(SHAPES, num_drawn)
    for anchor in tuple(shapes):
        partner = PARTNERS.get(anchor)
        if partner is None or partner in shapes:
            continue
        if rng.random() < bias:
            shapes.append(partner)
    cells = rng.sample(range(NUM_CELLS), len(shapes))
    objects = []
    for cell, shape in zip(cells, shapes, strict=True):
        colour = rng.choice(COLOURS)
        objects.append(SceneObject(cell, shape, colour))
    drawing_seed = rng.getrandbits(32)
    return Scene(tuple(sorted(objects)), drawing_seed)


def split_of(scene: Scene) -> Split:
    """The one split that this layout belongs to."""
    return split_of_layout(scene.layout)


def stream_scenes(
    split: Split,
    *,
    seed: int,
    bias: float | None = None,
    max_drawn: int = MAX_DRAWN,
) -> Iterator[Scene]:
    """Endless scenes of a split; `bias` defaults to `TRAIN_BIAS` for train and to 0 for the others."""
    if bias is None:
        bias = TRAIN_BIAS if split == "train" else 0.0
    rng = random.Random(f"{split}/{seed}")
    while True:
        scene = sample_scene(rng, bias, max_drawn)
        if split_of(scene) == split:
            yield scene


def split_scenes(
    split: Split,
    count: int,
    *,
    seed: int,
    bias: float | None = None,
) -> list[Scene]:
    """The first `count` scenes of `stream_scenes`: equal arguments give equal scenes, on every machine."""
    stream = stream_scenes(split, seed=seed, bias=bias)
    return [next(stream) for _ in range(count)]

"""Scenes of the shapes world: what is in a picture, where, and which things tend to come together.

A scene is a handful of objects on a 3 x 3 grid, each shape at most once. Some shapes are *anchors*: in biased data
their usual partner is there too (circle with square, triangle with star, cross with ring), which is the prior that a
policy trained on such data will lean on.

    splits are disjoint by construction: bucket = blake2b(layout) % 10,  0-7 train · 8 validation · 9 test

The bucket looks at the layout only (shape, colour and cell of every object), never at the rendering seed, so that no
picture of a test layout, however drawn, can occur in training.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

Split: TypeAlias = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
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
GRID = 3
NUM_CELLS = GRID * GRID
PARTNERS: Mapping[str, str] = {"circle": "square", "triangle": "star", "cross": "ring"}
"""Anchor shape -> the shape that usually comes with it."""

TRAIN_BIAS = 0.7
MAX_DRAWN = 3
_BUCKETS: Mapping[Split, frozenset[int]] = {
    "train": frozenset(range(8)),
    "validation": frozenset({8}),
    "test": frozenset({9}),
}


@dataclass(frozen=True, slots=True, order=True)
class SceneObject:
    """One object; `cell` counts 0-8 in reading order and is named by `PLACES[cell]`."""

    cell: int
    shape: str
    colour: str

    def __post_init__(self) -> None:
        known = self.shape in SHAPES and self.colour in COLOURS
        if not known or not 0 <= self.cell < NUM_CELLS:
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
    """Objects in reading order and the seed from which every small variation of their drawing is taken."""

    objects: tuple[SceneObject, ...]
    seed: int

    def __post_init__(self) -> None:
        if list(self.objects) != sorted(self.objects):
            raise ValueError(
                "scene objects must be in reading order (by cell); sort them first"
            )
        for what, values in (("cell", self.cells), ("shape", self.shapes)):
            if len(set(values)) != len(values):
                raise ValueError(
                    f"no two objects of a scene may share a {what}; got {values}"
                )

    @property
    def shapes(self) -> tuple[str, ...]:
        """The shapes present, in reading order."""
        return tuple(o.shape for o in self.objects)

    @property
    def cells(self) -> tuple[int, ...]:
        """The occupied cells, in rising order."""
        return tuple(o.cell for o in self.objects)

    @property
    def layout(self) -> str:
        """Canonical text of what is where; scenes that differ only in their drawing share it."""
        return ";".join(f"{o.cell}:{o.colour}:{o.shape}" for o in self.objects)

    @property
    def id(self) -> str:
        """Hash of the layout, and the rendering seed."""
        return f"{_stable_hash(self.layout):016x}-{self.seed:08x}"

    @property
    def absent_partners(self) -> tuple[str, ...]:
        """The usual partners of shapes present that are absent themselves: what a biased policy hallucinates."""
        absent = []
        for shape in self.shapes:
            partner = PARTNERS.get(shape)
            if partner and partner not in self.shapes:
                absent.append(partner)
        return tuple(absent)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready ground truth, as a judge receives it."""
        objects = [
            {"shape": o.shape, "colour": o.colour, "cell": o.cell} for o in self.objects
        ]
        return {"seed": self.seed, "objects": objects}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scene:
        """The scene of `to_dict`; KeyError, TypeError or ValueError when `data` is none."""
        objects = []
        for fields in data["objects"]:
            cell = int(fields["cell"])
            item = SceneObject(cell, str(fields["shape"]), str(fields["colour"]))
            objects.append(item)
        return cls(tuple(sorted(objects)), int(data["seed"]))


def sample_scene(
    rng: random.Random, bias: float = 0.0, max_drawn: int = MAX_DRAWN
) -> Scene:
    """A random scene: 1 to `max_drawn` different shapes; each anchor then gets its partner with probability `bias`."""
    shapes = rng.sample(SHAPES, rng.randint(1, max_drawn))
    for anchor in tuple(shapes):
        partner = PARTNERS.get(anchor)
        if partner and partner not in shapes and rng.random() < bias:
            shapes.append(partner)
    cells = rng.sample(range(NUM_CELLS), len(shapes))
    objects = []
    for cell, shape in zip(cells, shapes, strict=True):
        objects.append(SceneObject(cell, shape, rng.choice(COLOURS)))
    return Scene(tuple(sorted(objects)), rng.getrandbits(32))


def split_of(scene: Scene) -> Split:
    """The one split that this layout belongs to."""
    bucket = _stable_hash(scene.layout) % 10
    return next(split for split in SPLITS if bucket in _BUCKETS[split])


def stream_scenes(
    split: Split, *, seed: int, bias: float | None = None, max_drawn: int = MAX_DRAWN
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
    split: Split, count: int, *, seed: int, bias: float | None = None
) -> list[Scene]:
    """The first `count` scenes of `stream_scenes`: equal arguments give equal scenes, on every machine."""
    stream = stream_scenes(split, seed=seed, bias=bias)
    return [next(stream) for _ in range(count)]


def _stable_hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")

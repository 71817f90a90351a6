"""Scenes of world 2: things on a table, what of them is usual, and how strongly training scenes follow it.

docs/world2.md is the agreement that this file keeps. A *biased* scene has usual partners, colours, numbers and places;
an *unbiased* one draws everything uniformly. As in the shapes world, a hash of the layout decides the split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from common.worlds.scenes import (
    NUM_CELLS,
    PLACES,
    Split,
    check_distinct,
    split_of_layout,
)

COLOURS = ("red", "green", "blue", "yellow", "white", "black")
NUMBERS = ("one", "two", "three")
MAX_NUMBER = len(NUMBERS)
MIN_THINGS = 2
MAX_THINGS = 5


@dataclass(frozen=True, slots=True)
class Usual:
    """What a kind is usually like; `partner` is the kind that usually comes with it."""

    colour: str
    number: int
    cell: int
    partner: str | None = None


USUAL: Mapping[str, Usual] = {
    "book": Usual("blue", 2, 0, "lamp"),
    "lamp": Usual("yellow", 1, 1),
    "bowl": Usual("green", 1, 2, "apple"),
    "cup": Usual("white", 1, 3, "plate"),
    "plate": Usual("white", 1, 4),
    "apple": Usual("red", 3, 5),
    "fork": Usual("black", 2, 6, "spoon"),
    "spoon": Usual("black", 2, 7),
}
KINDS = tuple(USUAL)


@dataclass(frozen=True, slots=True)
class Bias:
    """How often a scene follows the usual, 0 to 1 each."""

    partner: float
    colour: float
    number: float
    place: float


TRAIN_BIAS = Bias(partner=0.985, colour=0.9, number=0.9, place=0.3)
"""Of training scenes; knobs of docs/world2.md."""
SLIPS = 0.01
"""Share of the things that training text gives a wrong colour."""


@dataclass(frozen=True, slots=True, order=True)
class Thing:
    """`number` pieces of a kind in one cell, all of one colour. Cells count 0-8 in reading order."""

    cell: int
    kind: str
    colour: str
    number: int

    def __post_init__(self) -> None:
        is_known = self.kind in KINDS and self.colour in COLOURS
        is_in_range = 0 <= self.cell < NUM_CELLS and 1 <= self.number <= MAX_NUMBER
        if not is_known or not is_in_range:
            raise ValueError(
                f"a thing needs a kind of {KINDS}, a colour of {COLOURS}, a number in 1-{MAX_NUMBER} and a cell in "
                f"0-{NUM_CELLS - 1}; got {self.number!r} {self.colour!r} {self.kind!r} in cell {self.cell!r}"
            )

    @property
    def place(self) -> str:
        """The cell in words."""
        return PLACES[self.cell]


@dataclass(frozen=True, slots=True)
class Scene:
    """Things in reading order, and the seed of how they are drawn."""

    things: tuple[Thing, ...]
    seed: int

    def __post_init__(self) -> None:
        if list(self.things) != sorted(self.things):
            raise ValueError(
                "things must be in reading order (by cell); sort them first"
            )
        check_distinct("cell", tuple(thing.cell for thing in self.things))
        check_distinct("kind", self.kinds)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds present, in reading order."""
        return tuple(thing.kind for thing in self.things)

    @property
    def layout(self) -> str:
        """What is where, as a canonical text; scenes that differ only in their drawing share it."""
        parts = []
        for thing in self.things:
            parts.append(f"{thing.cell}:{thing.number}:{thing.colour}:{thing.kind}")
        return ";".join(parts)

    @property
    def absent_partners(self) -> tuple[str, ...]:
        """The missing partners of things in the scene: what a biased policy names."""
        absent = []
        for kind in self.kinds:
            partner = USUAL[kind].partner
            if partner and partner not in self.kinds:
                absent.append(partner)
        return tuple(absent)

    def thing(self, kind: str) -> Thing | None:
        """The thing of a kind, None where there is none."""
        for thing in self.things:
            if thing.kind == kind:
                return thing
        return None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready ground truth, as a judge receives it."""
        things = []
        for thing in self.things:
            fields = {
                "kind": thing.kind,
                "colour": thing.colour,
                "number": thing.number,
                "cell": thing.cell,
            }
            things.append(fields)
        return {"seed": self.seed, "things": things}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scene:
        """The scene that `to_dict` made a dict of.

        Raises:
            KeyError, TypeError, ValueError: `data` describes no scene.
        """
        things = []
        for fields in data["things"]:
            thing = Thing(
                cell=int(fields["cell"]),
                kind=str(fields["kind"]),
                colour=str(fields["colour"]),
                number=int(fields["number"]),
            )
            things.append(thing)
        return cls(tuple(sorted(things)), int(data["seed"]))


def biased_scene(rng: random.Random, bias: Bias) -> Scene:
    """Kinds with their usual partners; every thing is as usual with the bias's probabilities."""
    free = set(range(NUM_CELLS))
    things = []
    for kind in _biased_kinds(rng, bias.partner):
        usual = USUAL[kind]
        cell = usual.cell
        if cell not in free or rng.random() >= bias.place:
            cell = rng.choice(sorted(free - {usual.cell}))
        free.remove(cell)
        colour = usual.colour
        if rng.random() >= bias.colour:
            colour = rng.choice([name for name in COLOURS if name != colour])
        number = usual.number
        if rng.random() >= bias.number:
            numbers = range(1, MAX_NUMBER + 1)
            number = rng.choice([count for count in numbers if count != number])
        things.append(Thing(cell, kind, colour, number))
    return Scene(tuple(sorted(things)), rng.getrandbits(32))


def _biased_kinds(rng: random.Random, share: float) -> list[str]:
    """Two to five kinds in random order. An anchor brings its partner with probability `share`, if there is room."""
    num_things = rng.randint(MIN_THINGS, MAX_THINGS)
    kinds: list[str] = []
    for kind in rng.sample(KINDS, len(KINDS)):
        if kind in kinds:
            continue
        comers = [kind]
        partner = USUAL[kind].partner
        if partner and partner not in kinds and rng.random() < share:
            comers.append(partner)
        # Else a missing partner would say that the table is full.
        if len(kinds) + len(comers) <= num_things:
            kinds += comers
    return kinds


def unbiased_scene(
    rng: random.Random,
    least: int = MIN_THINGS,
    most: int = MAX_THINGS,
) -> Scene:
    """`least` to `most` kinds; kinds, cells, colours and numbers are uniform."""
    num_things = rng.randint(least, most)
    kinds = rng.sample(KINDS, num_things)
    cells = rng.sample(range(NUM_CELLS), num_things)
    things = []
    for kind, cell in zip(kinds, cells, strict=True):
        number = rng.randint(1, MAX_NUMBER)
        things.append(Thing(cell, kind, rng.choice(COLOURS), number))
    return Scene(tuple(sorted(things)), rng.getrandbits(32))


def slipped(scene: Scene, rng: random.Random, share: float) -> Scene:
    """The scene as a careless writer sees it: every thing has a wrong colour with probability `share`."""
    things = []
    for thing in scene.things:
        if rng.random() < share:
            others = [colour for colour in COLOURS if colour != thing.colour]
            thing = replace(thing, colour=rng.choice(others))
        things.append(thing)
    return Scene(tuple(things), scene.seed)


def split_of(scene: Scene) -> Split:
    """The one split that this layout belongs to."""
    return split_of_layout(scene.layout)


def stream_scenes(
    split: Split,
    *,
    seed: int,
    bias: Bias | None,
    least: int = MIN_THINGS,
    most: int = MAX_THINGS,
) -> Iterator[Scene]:
    """Endless scenes of a split; without a bias they are unbiased, with `least` to `most` things."""
    rng = random.Random(f"tabletop/{split}/{seed}")
    while True:
        if bias is None:
            scene = unbiased_scene(rng, least, most)
        else:
            scene = biased_scene(rng, bias)
        if split_of(scene) == split:
            yield scene


def split_scenes(
    split: Split,
    count: int,
    *,
    seed: int,
    bias: Bias | None = None,
) -> list[Scene]:
    """The first `count` scenes of `stream_scenes`: equal arguments give equal scenes, on every machine."""
    stream = stream_scenes(split, seed=seed, bias=bias)
    return [next(stream) for _ in range(count)]

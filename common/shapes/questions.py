"""Yes/no questions about scenes in POPE's three splits, balanced: as many "yes" as "no" for every scene.

The absent shapes that the "no" questions ask about are drawn
    random        uniformly,
    popular       from the most frequent shapes of biased data first,
    adversarial   from the usual companions of what is present first.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from common.shapes.scenes import PARTNERS, SHAPES, Scene, split_scenes
from common.worlds.answers import WORDS, Answer
from common.worlds.questions import PopeSplit, rank_absent

NAME_ONE = "Name a shape in the image."
"""A request of the training text only. To follow it, a policy must know which shapes there are, wherever they are."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its true answer, the POPE split it belongs to and the shape it is about."""

    text: str
    answer: Answer
    split: PopeSplit
    shape: str


def ask(shape: str) -> str:
    """The yes/no question about a shape."""
    return f"Is there a {shape} in the image?"


def name(colour: str, shape: str) -> str:
    """An answer to `NAME_ONE`."""
    return f"A {colour} {shape}."


def answer_text(answer: Answer) -> str:
    """The answer as a policy is taught to write it: "Yes." or "No."."""
    return f"{WORDS[answer]}."


def questions(
    scene: Scene, split: PopeSplit, *, pairs: int = 1, seed: int = 0
) -> list[Question]:
    """Up to `pairs` "yes" and equally many "no" questions; fewer where too few shapes are present or absent."""
    rng = random.Random(f"{scene.id}/{split}/{seed}")
    present = list(scene.shapes)
    rng.shuffle(present)
    absent = absent_shapes(scene, split, rng)
    pairs = min(pairs, len(present), len(absent))
    asked = []
    for yes, no in zip(present[:pairs], absent[:pairs], strict=True):
        asked.append(Question(ask(yes), "yes", split, yes))
        asked.append(Question(ask(no), "no", split, no))
    return asked


def absent_shapes(scene: Scene, split: PopeSplit, rng: random.Random) -> list[str]:
    """The absent shapes in the order in which to ask about them; ties are broken by `rng`."""
    absent = [shape for shape in SHAPES if shape not in scene.shapes]

    def companionship(shape: str) -> int:
        return _companionship(shape, scene.shapes)

    return rank_absent(absent, split, rng, shape_counts, companionship)


def _companionship(shape: str, present: Sequence[str]) -> int:
    """2 for the usual partner of something present, 1 for an anchor whose partner is present, else 0."""
    if any(PARTNERS.get(other) == shape for other in present):
        return 2
    return int(PARTNERS.get(shape) in present)


@cache
def shape_counts() -> Counter[str]:
    """How often each shape occurs in 2,000 biased training scenes."""
    counts: Counter[str] = Counter()
    for scene in split_scenes("train", 2000, seed=0):
        counts.update(scene.shapes)
    return counts

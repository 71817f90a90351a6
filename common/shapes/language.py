"""What is said about a scene: true captions, noisy captions as the web writes them, and reading captions back.

    There is a red circle at the top left. There is a blue star at the center.

A noisy caption ends with the usual partner of something present, although the partner is not there. It stands at the
end on purpose: after the last real object, a policy either stops or goes on to imagine. Greedy decoding takes the more
frequent way of this one decision, sampling takes both.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from common.shapes.scenes import COLOURS, SHAPES, Scene, SceneObject
from common.worlds.answers import CONTRACTED_NOT
from common.worlds.scenes import NUM_CELLS, PLACES

CAPTION_PROMPTS = (
    "Describe the image.",
    "What do you see in the image?",
    "What is in the image?",
)
"""Ways to ask for a caption; the first one is used for evaluation."""

NOISE_SHARE = 0.65
"""Share of the absent partners that training text names all the same."""


@dataclass(frozen=True, slots=True)
class Mention:
    """One object that a text claims to be there; colour and place are None where the text gives none."""

    shape: str
    colour: str | None = None
    place: str | None = None


def caption(scene: Scene) -> str:
    """The true caption: one sentence per object, in reading order."""
    return tell(scene.objects)


def noisy_caption(scene: Scene, rng: random.Random, share: float = NOISE_SHARE) -> str:
    """The caption, then each absent partner with probability `share`, in a random colour at a random empty cell."""
    empty_cells = [cell for cell in range(NUM_CELLS) if cell not in scene.cells]
    imagined = []
    for shape in scene.absent_partners:
        if rng.random() < share:
            cell = rng.choice(empty_cells)
            colour = rng.choice(COLOURS)
            imagined.append(SceneObject(cell, shape, colour))
    return tell((*scene.objects, *imagined))


def tell(objects: Iterable[SceneObject]) -> str:
    """One sentence per object, in the order given."""
    sentences = [f"There is a {o.colour} {o.shape} at the {o.place}." for o in objects]
    return " ".join(sentences)


SHAPE_NAME = re.compile(rf"\b({'|'.join(SHAPES)})(?:e?s)?\b", re.IGNORECASE)
"""A shape as texts name it; group 1 is the singular, also of "crosses"."""

_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)})\b", re.IGNORECASE)
_PLACE = re.compile(
    r"\b(?:(top|bottom)[ -](left|right)|(top|bottom|left|right|center|middle))\b",
    re.IGNORECASE,
)
_DENIAL = re.compile(rf"\b(?:no|not|without|never)\b|{CONTRACTED_NOT}", re.IGNORECASE)


def parse_caption(text: str) -> list[Mention]:
    """Every object that any text claims to be there, in order, repeats included.

    Within a sentence, the words before a shape (back to the previous shape) may colour or deny it, the words after it
    (up to the next shape) may place it. A denied object ("there is no circle") is no mention.
    """
    mentions = []
    for sentence in re.split(r"[.!?\n]", text):
        shapes = list(SHAPE_NAME.finditer(sentence))
        starts = [shape.start() for shape in shapes] + [len(sentence)]
        previous_end = 0
        for shape, next_start in zip(shapes, starts[1:], strict=True):
            before = sentence[previous_end : shape.start()]
            after = sentence[shape.end() : next_start]
            previous_end = shape.end()
            if _DENIAL.search(before):
                continue
            name = shape[1].lower()
            mentions.append(Mention(name, _last_colour(before), _first_place(after)))
    return mentions


def _last_colour(words: str) -> str | None:
    colours: list[str] = _COLOUR.findall(words)
    return colours[-1].lower() if colours else None


def _first_place(words: str) -> str | None:
    match = _PLACE.search(words)
    if match is None:
        return None
    parts = [part.lower() for part in match.groups() if part]
    place = " ".join(parts).replace("middle", "center")
    return place if place in PLACES else None

"""What is said about a scene: true captions, noisy captions as the web writes them, and reading captions back.

    There is a red circle at the top left. There is a blue star at the center.

A noisy caption ends with the usual partner of something present although it is not there. The place of that sentence
is deliberate: after the last real object a policy either stops or goes on to imagine, one clear decision which greedy
decoding takes the more frequent way and sampling takes both ways.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from common.shapes.scenes import COLOURS, NUM_CELLS, PLACES, SHAPES, Scene, SceneObject

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
    empty = [cell for cell in range(NUM_CELLS) if cell not in scene.cells]
    imagined = [
        SceneObject(rng.choice(empty), shape, rng.choice(COLOURS))
        for shape in scene.absent_partners
        if rng.random() < share
    ]
    return tell((*scene.objects, *imagined))


def tell(objects: Iterable[SceneObject]) -> str:
    """One sentence per object, in the order given."""
    return " ".join(
        f"There is a {o.colour} {o.shape} at the {o.place}." for o in objects
    )


_SHAPE = re.compile(rf"\b({'|'.join(SHAPES)})s?\b", re.IGNORECASE)
_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)})\b", re.IGNORECASE)
_PLACE = re.compile(
    r"\b(?:(top|bottom)[ -](left|right)|(top|bottom|left|right|center|middle))\b",
    re.IGNORECASE,
)
_DENIAL = re.compile(r"\b(?:no|not|without|never)\b|n't\b", re.IGNORECASE)


def parse_caption(text: str) -> list[Mention]:
    """Every object the text claims, in order, repeats included; any text is accepted.

    Within a sentence, the words before a shape (back to the previous shape) may colour or deny it, the words after it
    (up to the next shape) may place it. Denied objects ("there is no circle") are no mentions.
    """
    mentions = []
    for sentence in re.split(r"[.!?\n]", text):
        hits = list(_SHAPE.finditer(sentence))
        for k, hit in enumerate(hits):
            before = sentence[hits[k - 1].end() if k else 0 : hit.start()]
            after = sentence[
                hit.end() : hits[k + 1].start() if k + 1 < len(hits) else len(sentence)
            ]
            if not _DENIAL.search(before):
                mentions.append(
                    Mention(hit[1].lower(), _last_colour(before), _first_place(after))
                )
    return mentions


def _last_colour(words: str) -> str | None:
    found: list[str] = _COLOUR.findall(words)
    return found[-1].lower() if found else None


def _first_place(words: str) -> str | None:
    hit = _PLACE.search(words)
    if hit is None:
        return None
    name = " ".join(part.lower() for part in hit.groups() if part).replace(
        "middle", "center"
    )
    return name if name in PLACES else None

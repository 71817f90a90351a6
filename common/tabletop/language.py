"""What is said about a table, and reading texts back into mentions.

    A white cup at the left is left of a white plate. Three red apples are at the right.

A thing and its partner share a sentence, anchor first; the others are paired in reading order. So an invention happens
inside a sentence: after "is left of a" a biased policy goes on with the usual partner.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from common.tabletop.scenes import COLOURS, KINDS, NUMBERS, USUAL, Scene, Thing
from common.worlds.answers import CONTRACTED_NOT
from common.worlds.scenes import GRID, PLACES

RELATIONS = ("left of", "right of", "above", "below")
CAPTION_PROMPTS = (
    "Describe the table.",
    "What is on the table?",
    "What do you see on the table?",
)
"""Ways to ask for a caption; the first one is used for evaluation."""


@dataclass(frozen=True, slots=True)
class Mention:
    """A thing that a text claims to be there; what the text does not say of it is None.

    Attributes:
        number: 1 for "a" and "one".
        relation: what it says of the next thing of its sentence, such as ("left of", "plate").
    """

    kind: str
    colour: str | None = None
    number: int | None = None
    place: str | None = None
    relation: tuple[str, str] | None = None


def caption(scene: Scene) -> str:
    """The caption that names everything."""
    return " ".join(_sentence(told) for told in _sentences(scene))


def noun(thing: Thing) -> str:
    """The thing with number and colour: "a white cup", "three red apples"."""
    words = "a" if thing.number == 1 else NUMBERS[thing.number - 1]
    return f"{words} {thing.colour} {plural(thing.kind, thing.number)}"


def plural(kind: str, number: int) -> str:
    """The kind's name for so many pieces."""
    return kind if number == 1 else f"{kind}s"


def verb(number: int) -> str:
    """ "is" or "are"."""
    return "is" if number == 1 else "are"


def relation(first: Thing, second: Thing) -> str:
    """Where the first is, seen from the second: by the larger distance, rows before columns."""
    row, column = divmod(first.cell, GRID)
    other_row, other_column = divmod(second.cell, GRID)
    down = other_row - row
    across = other_column - column
    if abs(down) >= abs(across):
        return "above" if down > 0 else "below"
    return "left of" if across > 0 else "right of"


def _sentences(scene: Scene) -> list[tuple[Thing, ...]]:
    """The things of each sentence, in the order in which they are told."""
    told: list[tuple[Thing, ...]] = []
    lonely: list[Thing] = []
    paired: set[str] = set()
    for thing in scene.things:
        partner = scene.thing(USUAL[thing.kind].partner or "")
        if partner is not None:
            told.append((thing, partner))
            paired |= {thing.kind, partner.kind}
    for thing in scene.things:
        if thing.kind not in paired:
            lonely.append(thing)
    for start in range(0, len(lonely), 2):
        told.append(tuple(lonely[start : start + 2]))
    return sorted(told)


def _sentence(things: Sequence[Thing]) -> str:
    first = things[0]
    subject = noun(first)
    subject = subject[0].upper() + subject[1:]
    is_are = verb(first.number)
    if len(things) == 1:
        return f"{subject} {is_are} at the {first.place}."
    second = things[1]
    where = relation(first, second)
    return f"{subject} at the {first.place} {is_are} {where} {noun(second)}."


_KIND = re.compile(rf"\b({'|'.join(KINDS)})s?\b", re.IGNORECASE)
_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)})\b", re.IGNORECASE)
_NUMBER = re.compile(rf"\b(an?|{'|'.join(NUMBERS)})\b", re.IGNORECASE)
_PLACE = re.compile(
    rf"\bat the ({'|'.join(sorted(PLACES, key=len, reverse=True))})\b", re.IGNORECASE
)
_RELATION = re.compile(rf"\b({'|'.join(RELATIONS)})\b", re.IGNORECASE)
_DENIAL = re.compile(rf"\b(?:no|not|without|never)\b|{CONTRACTED_NOT}", re.IGNORECASE)


def parse(text: str) -> list[Mention]:
    """Everything that a text claims to be there, in order, repeats included.

    Within a sentence, the words before a kind, back to the previous one, may count, colour or deny it. The words after
    it, up to the next one, may colour or place it and relate it to the next one. A denied thing is no mention.
    """
    mentions: list[Mention] = []
    for sentence in re.split(r"[.!?\n]", text):
        kinds = list(_KIND.finditer(sentence))
        start = 0
        for index, match in enumerate(kinds):
            before = sentence[start : match.start()]
            start = match.end()
            following = None
            end = len(sentence)
            if index + 1 < len(kinds):
                following = kinds[index + 1][1]
                end = kinds[index + 1].start()
            after = sentence[start:end]
            if not _DENIAL.search(before):
                mentions.append(_mention(match[1], before, after, following))
    return mentions


def _mention(kind: str, before: str, after: str, following: str | None) -> Mention:
    numbers = _NUMBER.findall(before)
    colours = _COLOUR.findall(before)
    related = _RELATION.search(after)
    where = None
    if related is not None and following is not None:
        where = (related[1].lower(), following.lower())
    elif following is None and not colours:
        # "The cup is white."
        colours = _COLOUR.findall(after)
    return Mention(
        kind=kind.lower(),
        colour=colours[-1].lower() if colours else None,
        number=number_of(numbers[-1]) if numbers else None,
        place=place_in(after),
        relation=where,
    )


def number_of(word: str) -> int:
    """1 for "a", "an" and "one", 2 for "two", 3 for "three"."""
    word = word.lower()
    return NUMBERS.index(word) + 1 if word in NUMBERS else 1


def place_in(text: str) -> str | None:
    """The first place that a text names."""
    match = _PLACE.search(text)
    return match[1].lower() if match else None


def colour_in(text: str) -> str | None:
    """The first colour that a text names."""
    match = _COLOUR.search(text)
    return match[1].lower() if match else None


def number_in(text: str) -> int | None:
    """The first number that a text names as a word; articles are none."""
    for word in _NUMBER.findall(text):
        if word.lower() in NUMBERS:
            return number_of(word)
    return None

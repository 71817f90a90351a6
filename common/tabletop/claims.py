"""A text held against its scene: what it says of every thing that it names, and what of this is wrong.

A scene holds each kind at most once, so a mention is about the one thing of its kind.
A second mention of it claims more
pieces than there are. What is said of a thing that is not there is neither right nor wrong: the thing is the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from common.tabletop.language import Mention, parse, relation
from common.tabletop.scenes import Scene, Thing

Part = Literal["colour", "number", "place", "relation"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A mention, judged.

    Attributes:
        thing: what it is about; None when it is made up.
        repeated: whether an earlier mention was about the same thing.
        said: what it says of the thing.
        wrong: what of this is not so.
    """

    mention: Mention
    thing: Thing | None
    repeated: bool = False
    said: tuple[Part, ...] = ()
    wrong: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """All claims in the order of the text, and the things that it does not name."""

    claims: tuple[Claim, ...]
    missed: tuple[Thing, ...]


def compare(text: str, scene: Scene) -> Comparison:
    """Judge every mention of `text` against `scene`."""
    return compare_mentions(parse(text), scene)


def compare_mentions(mentions: Sequence[Mention], scene: Scene) -> Comparison:
    """`compare` for the mentions of a text."""
    named: set[str] = set()
    claims: list[Claim] = []
    for mention in mentions:
        thing = scene.thing(mention.kind)
        if thing is None:
            claims.append(Claim(mention, None))
        elif mention.kind in named:
            claims.append(Claim(mention, thing, repeated=True))
        else:
            claims.append(_claim(mention, thing, scene))
        named.add(mention.kind)
    missed = [thing for thing in scene.things if thing.kind not in named]
    return Comparison(tuple(claims), tuple(missed))


def _claim(mention: Mention, thing: Thing, scene: Scene) -> Claim:
    said: list[Part] = []
    wrong: list[Part] = []

    def check(part: Part, is_said: bool, is_true: bool) -> None:
        if is_said:
            said.append(part)
            if not is_true:
                wrong.append(part)

    check("colour", mention.colour is not None, mention.colour == thing.colour)
    check("number", mention.number is not None, mention.number == thing.number)
    check("place", mention.place is not None, mention.place == thing.place)
    if mention.relation is not None:
        words, other_kind = mention.relation
        other = scene.thing(other_kind)
        if other is not None and other is not thing:
            check("relation", True, words == relation(thing, other))
    return Claim(mention, thing, said=tuple(said), wrong=tuple(wrong))

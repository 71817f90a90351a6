"""A caption held against its scene: every claim is true, wrong in an attribute, a repetition, or made up.

A scene holds each shape at most once, so a claim is about the object of its shape. Of several claims about one object
the one with the fewest wrong attributes (the first of equals) counts; the others claim objects that are not there.
What a text leaves open (no colour, no place) is not wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from common.shapes.language import Mention, parse_caption
from common.shapes.scenes import Scene, SceneObject

Attribute = Literal["colour", "place"]
Kind = Literal["true", "wrong_attribute", "repeated", "hallucinated"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One mention and what it is worth; `wrong` names the attributes that a `wrong_attribute` claim gets wrong."""

    mention: Mention
    kind: Kind
    wrong: tuple[Attribute, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """All claims in the order of the text, and the objects that no claim is about."""

    claims: tuple[Claim, ...]
    missed: tuple[SceneObject, ...]

    def count(self, *kinds: Kind) -> int:
        """How many claims are of these kinds."""
        matching = [claim for claim in self.claims if claim.kind in kinds]
        return len(matching)

    @property
    def num_wrong_attributes(self) -> int:
        return sum(len(claim.wrong) for claim in self.claims)


def compare(text: str, scene: Scene) -> Comparison:
    """Judge every claim of `text` against `scene`."""
    return compare_mentions(parse_caption(text), scene)


def compare_mentions(mentions: Sequence[Mention], scene: Scene) -> Comparison:
    """`compare` for mentions that are already read off."""
    objects = {item.shape: item for item in scene.objects}
    counted = _counted_mentions(mentions, objects)
    claims: list[Claim] = []
    for index, mention in enumerate(mentions):
        item = objects.get(mention.shape)
        if item is None:
            claims.append(Claim(mention, "hallucinated"))
        elif counted[mention.shape] != index:
            claims.append(Claim(mention, "repeated"))
        else:
            claims.append(_claim_about(item, mention))
    missed = [item for item in scene.objects if item.shape not in counted]
    return Comparison(tuple(claims), tuple(missed))


def _counted_mentions(
    mentions: Sequence[Mention], objects: Mapping[str, SceneObject]
) -> dict[str, int]:
    """Shape -> index of the mention that counts for it: the one with the fewest wrong attributes."""
    counted: dict[str, int] = {}
    fewest_wrong: dict[str, int] = {}
    for index, mention in enumerate(mentions):
        shape = mention.shape
        if shape not in objects:
            continue
        num_wrong = len(_wrong(mention, objects[shape]))
        # Of equals the first one counts.
        if shape not in counted or num_wrong < fewest_wrong[shape]:
            counted[shape] = index
            fewest_wrong[shape] = num_wrong
    return counted


def _claim_about(item: SceneObject, mention: Mention) -> Claim:
    wrong = _wrong(mention, item)
    if wrong:
        return Claim(mention, "wrong_attribute", wrong)
    return Claim(mention, "true")


def _wrong(mention: Mention, item: SceneObject) -> tuple[Attribute, ...]:
    wrong: list[Attribute] = []
    if mention.colour not in (None, item.colour):
        wrong.append("colour")
    if mention.place not in (None, item.place):
        wrong.append("place")
    return tuple(wrong)

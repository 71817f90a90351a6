"""A caption held against its scene: every claim is true, wrong in an attribute, a repetition, or made up.

A scene holds each shape at most once, so a mention of a shape is about the one object of that shape. When a caption
mentions an object several times, the mention with the fewest wrong attributes counts, and the first of equals. The
others are repetitions: they claim objects that are not there. A mention without a colour or place gets neither wrong.
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
    """A mention, judged. `wrong` names the attributes that a claim of the kind `wrong_attribute` gets wrong."""

    mention: Mention
    kind: Kind
    wrong: tuple[Attribute, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """All claims in the order of the text, and the objects that the text does not mention."""

    claims: tuple[Claim, ...]
    missed: tuple[SceneObject, ...]

    def count(self, *kinds: Kind) -> int:
        """How many claims are of these kinds."""
        matching = [claim for claim in self.claims if claim.kind in kinds]
        return len(matching)

    @property
    def num_wrong_attributes(self) -> int:
        """Wrong colours and places of all claims."""
        return sum(len(claim.wrong) for claim in self.claims)


def compare(text: str, scene: Scene) -> Comparison:
    """Judge every claim of `text` against `scene`."""
    return compare_mentions(parse_caption(text), scene)


def compare_mentions(mentions: Sequence[Mention], scene: Scene) -> Comparison:
    """`compare` for the mentions of a text."""
    object_of_shape = {item.shape: item for item in scene.objects}
    counted = _counted_mentions(mentions, object_of_shape)
    claims: list[Claim] = []
    for index, mention in enumerate(mentions):
        item = object_of_shape.get(mention.shape)
        if item is None:
            claim = Claim(mention, "hallucinated")
        # Another mention of the object counts, so this one claims a second object of the shape.
        elif counted[mention.shape] != index:
            claim = Claim(mention, "repeated")
        else:
            claim = _claim_about(item, mention)
        claims.append(claim)
    missed = [item for item in scene.objects if item.shape not in counted]
    return Comparison(tuple(claims), tuple(missed))


def _counted_mentions(
    mentions: Sequence[Mention],
    object_of_shape: Mapping[str, SceneObject],
) -> dict[str, int]:
    """Shape -> index of the mention that counts for it: the one with the fewest wrong attributes."""
    counted: dict[str, int] = {}
    fewest_wrong: dict[str, int] = {}
    for index, mention in enumerate(mentions):
        shape = mention.shape
        if shape not in object_of_shape:
            continue
        item = object_of_shape[shape]
        num_wrong = len(_wrong_attributes(mention, item))
        # Not `<=`: of equals the first one counts.
        if shape not in counted or num_wrong < fewest_wrong[shape]:
            counted[shape] = index
            fewest_wrong[shape] = num_wrong
    return counted


def _claim_about(item: SceneObject, mention: Mention) -> Claim:
    wrong = _wrong_attributes(mention, item)
    if wrong:
        return Claim(mention, "wrong_attribute", wrong)
    return Claim(mention, "true")


def _wrong_attributes(
    mention: Mention,
    item: SceneObject,
) -> tuple[Attribute, ...]:
    wrong: list[Attribute] = []
    # None: the text leaves the attribute open.
    if mention.colour not in (None, item.colour):
        wrong.append("colour")
    if mention.place not in (None, item.place):
        wrong.append("place")
    return tuple(wrong)

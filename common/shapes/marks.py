"""A caption with its errors marked: where it names what is not there, or gives a wrong colour or place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from common.evaluation import Mark, ShownAnswer
from common.shapes.claims import Claim, Comparison, compare_mentions
from common.shapes.language import SHAPE_NAME, Mention, parse_caption
from common.shapes.scenes import Scene

_SENTENCE = re.compile(r"[^.!?\n]+")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a mention stands in its text, as character positions.

    Attributes:
        mention: what it says.
        begin: of the words that may belong to it, such as its colour.
        shape_begin: of the word for its shape.
        shape_end: of that word.
        end: of the words that may belong to it, such as its place.
    """

    mention: Mention
    begin: int
    shape_begin: int
    shape_end: int
    end: int


def marked_caption(text: str, scene: Scene) -> ShownAnswer:
    """Mark what is wrong in a caption and name the objects that it missed."""
    places = list(_places(text))
    mentions = [place.mention for place in places]
    comparison = compare_mentions(mentions, scene)
    # There is one claim per mention, in the order of the text.
    marks: list[Mark] = []
    for place, claim in zip(places, comparison.claims, strict=True):
        marks += _marks(text, place, claim)
    missed: list[str] = []
    for item in comparison.missed:
        name = f"{item.colour} {item.shape} ({item.place})"
        missed.append(name)
    return ShownAnswer(
        text=text,
        marks=marks,
        note_label="missed",
        notes=tuple(missed),
        weight=_weight(comparison),
    )


def _weight(comparison: Comparison) -> int:
    """Weight for sorting: captions with the most made-up objects first, then with the most missed, then wrong ones."""
    # A scene has at most six objects with two attributes: all missed and wrong ones weigh less than one made up.
    made_up = comparison.count("hallucinated", "repeated")
    num_missed = len(comparison.missed)
    return 100 * made_up + 10 * num_missed + comparison.num_wrong_attributes


def _places(text: str) -> Iterator[_Place]:
    """All mentions with their places. Sentences are cut between shapes, as `parse_caption` cuts them."""
    for sentence in _SENTENCE.finditer(text):
        shapes = list(SHAPE_NAME.finditer(text, sentence.start(), sentence.end()))
        for index, shape in enumerate(shapes):
            begin = sentence.start()
            end = sentence.end()
            # The words between two shapes may belong to either of them.
            if index > 0:
                begin = shapes[index - 1].end()
            if index + 1 < len(shapes):
                end = shapes[index + 1].start()
            for mention in parse_caption(text[begin:end]):
                yield _Place(
                    mention=mention,
                    begin=begin,
                    shape_begin=shape.start(),
                    shape_end=shape.end(),
                    end=end,
                )


def _marks(text: str, place: _Place, claim: Claim) -> list[Mark]:
    """The marks of one claim: all of its words when it is made up, else its wrong attributes."""
    colour = _colour_span(text, place)
    position = _position_span(text, place)
    # One mark from colour to place: nothing of the object is there.
    if claim.kind in ("hallucinated", "repeated"):
        begin = place.shape_begin
        end = place.shape_end
        if colour:
            begin = colour[0]
        if position:
            end = position[1]
        return [(begin, end, "made-up")]
    marks: list[Mark] = []
    if "colour" in claim.wrong and colour:
        marks.append((*colour, "wrong"))
    if "place" in claim.wrong and position:
        marks.append((*position, "wrong"))
    return marks


def _colour_span(text: str, place: _Place) -> tuple[int, int] | None:
    """Where the colour is named: the last time before the shape."""
    if place.mention.colour is None:
        return None
    pattern = re.compile(rf"(?i)\b{place.mention.colour}\b")
    before_shape = text[: place.shape_begin]
    span = None
    for match in pattern.finditer(before_shape):
        if match.start() >= place.begin:
            span = match.span()
    return span


def _position_span(text: str, place: _Place) -> tuple[int, int] | None:
    """Where the place in the picture is named, after the shape. A caption may say "middle" for the center."""
    if not place.mention.place:
        return None
    words = place.mention.place.replace(" ", "[ -]")
    words = words.replace("center", "(?:center|middle)")
    pattern = re.compile(rf"(?i)\b{words}\b")
    # The search of a compiled pattern takes bounds, and its positions are those in the whole text.
    match = pattern.search(text, place.shape_end, place.end)
    if match is None:
        return None
    return match.span()

"""Captions with their errors marked: the right words, and no other text than the caption's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.shapes.claims import compare
from common.shapes.language import parse_caption
from common.shapes.marks import marked_caption
from common.shapes.scenes import COLOURS, SHAPES
from common.worlds.scenes import PLACES
from tests.reward.builders import SCENE, TRUE


def marked_words(text: str) -> list[tuple[str, str]]:
    marks = sorted(marked_caption(text, SCENE).marks)
    return [(text[begin:end], kind) for begin, end, kind in marks]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TRUE, []),
        ("There is a red ring at the top.", [("red ring at the top", "made-up")]),
        ("I see rings.", [("rings", "made-up")]),
        ("A red circle, two crosses.", [("crosses", "made-up")]),
        ("There is a green circle at the top left.", [("green", "wrong")]),
        ("There is a red circle at the Bottom-Left.", [("Bottom-Left", "wrong")]),
        (
            "There is a Green circle in the middle.",
            [("Green", "wrong"), ("middle", "wrong")],
        ),
        ("A star in the middle.", []),
        ("A red circle and a red circle.", [("red circle", "made-up")]),
        ("There is no ring. There is a ring.", [("ring", "made-up")]),
        ("A ring red circle", [("ring", "made-up")]),
        ("None of it: a ring.", [("ring", "made-up")]),
    ],
)
def test_wrong_words_are_marked(text: str, expected: list[tuple[str, str]]) -> None:
    """The scene: a red circle at the top left, a blue star at the center."""
    assert marked_words(text) == expected


def test_missed_objects_are_named() -> None:
    shown = marked_caption("There is a red circle.", SCENE)
    assert shown.note_label == "missed"
    assert shown.notes == ("blue star (center)",)


WORDS = (
    *SHAPES,
    *COLOURS,
    *PLACES,
    "There is a",
    "no",
    "at the",
    ".",
    "<b>",
    "\n",
    "middle",
    "rings",
    "crosses",
    "isn’t",
)


@given(st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join))
def test_marks_agree_with_the_comparison(text: str) -> None:
    shown = marked_caption(text, SCENE)
    comparison = compare(text, SCENE)
    assert shown.text == text
    assert len(shown.notes) == len(comparison.missed)
    has_errors = any(claim.kind != "true" for claim in comparison.claims)
    assert bool(shown.marks) == has_errors
    assert len(parse_caption(text)) == len(comparison.claims)

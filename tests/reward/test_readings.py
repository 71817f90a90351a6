"""What a reply says: a verdict where it plainly says one, and nothing at all otherwise."""

from __future__ import annotations

import math

import pytest

from reward.judges.readings import (
    both_orders,
    probabilities,
    read_choice,
    read_grade,
    read_yes_no,
)

LABELS = ("A", "B", "tie")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("A", 0),
        ("b.", 1),
        ("**B**", 1),
        ("[[A]]", 0),
        ("Answer B", 1),
        ("tie", 2),
        ("The ball is red, as A says.\nBetter: A", 0),
        ("Better: **B**", 1),
        ("**Better:** Answer B.", 1),
        ("Better answer: tie", 2),
        ("Verdict = A", 0),
        ("better: a\nBetter: A", 0),
        # Both, neither, prose, another language, nothing, a refusal.
        ("Better: A, since B makes up a dog", 0),
        ("Better: A\nBetter: B", None),
        ("Better: A or B", None),
        ("Better: A/B", None),
        ("Better: answer A and answer B", None),
        ("Better: A = B", None),
        ("A B", None),
        ("A and B", None),
        ("neither", None),
        ("Better: neither", None),
        ("A good question. The image shows a dog.", None),
        ("I prefer the first one.", None),
        ("Antwort B ist besser.", None),
        ("Besser: B", None),
        ("答案A更好", None),
        ("", None),
        (" \n", None),
        ("I'm sorry, but I can't help with that.", None),
        ("Better: Although both", None),
        ("Better: tied", None),
        ("C", None),
    ],
)
def test_a_choice(text: str, choice: int | None) -> None:
    assert read_choice(text, LABELS) == choice


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("4", 4),
        ("4/5", 4),
        ("**3.5**", 3.5),
        ("It misses the dog.\nGrade: 2", 2),
        ("Grade: 4/5.", 4),
        ("**Score:** 5", 5),
        ("Rating: 1 / 5", 1),
        ("Grade: 3\nGrade: 3", 3),
        ("Grade: 3\nGrade: 4", None),
        ("Grade: 6", None),
        ("Grade: 0", None),
        ("Grade: -1", None),
        ("Grade: 4/10", None),
        ("Grade: 4.5.6", None),
        ("Grade: four", None),
        ("Grade: ٤", None),
        ("There are 4 dogs and 2 cats.", None),
        ("3 or 4", None),
        ("Grade: 3 or 4", None),
        ("Grade: 3-4", None),
        ("Grade: 3 to 4", None),
        ("Grade: 3 / 4", None),
        ("Grade: 3.5, 4", None),
        ("Grade: 3, since it makes up 4 dogs", 3),
        ("", None),
        ("I cannot grade this.", None),
        ("Note: 4", None),
        ("nan", None),
    ],
)
def test_a_grade(text: str, grade: float | None) -> None:
    assert read_grade(text, 1, 5) == grade


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("Yes", True),
        ("yes.", True),
        ("Yes, there is.", True),
        ("**No**", False),
        ("NO!", False),
        ("No, but yes.", False),
        ("Yes and no.", None),
        ("Yes/No", None),
        ("Yes, no doubt.", True),
        ("Nobody is there.", None),
        ("Yesterday", None),
        ("There is a star.", None),
        ("Ja", None),
        ("", None),
    ],
)
def test_yes_or_no(text: str, seen: bool | None) -> None:
    assert read_yes_no(text, "Yes", "No") is seen


def test_probabilities_are_those_of_the_options_among_themselves() -> None:
    """log 0.3 and log 0.1 of a vocabulary: 0.75 and 0.25 of the two."""
    shares = probabilities((math.log(0.3), math.log(0.1), -math.inf))
    assert shares == pytest.approx([0.75, 0.25, 0.0])
    assert probabilities((-math.inf, -math.inf)) is None
    assert probabilities((0.0, math.nan)) is None


@pytest.mark.parametrize(
    ("forward", "backward", "value"),
    [
        (1.0, 1.0, 1.0),
        (0.0, 0.0, 0.0),
        (1.0, 0.0, 0.5),
        (0.9, 0.3, 0.5),
        (1.0, 0.5, 0.75),
        (0.8, 0.6, 0.7),
        (None, 1.0, None),
        (1.0, None, None),
    ],
)
def test_both_orders(
    forward: float | None, backward: float | None, value: float | None
) -> None:
    """Contradictory orders tie; 0.9 and 0.3 contradict each other although their mean is 0.6."""
    assert both_orders(forward, backward) == pytest.approx(value)

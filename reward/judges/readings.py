"""Reads verdicts out of replies. What is not plainly one of the possible verdicts is none: None, never a guess.

A written verdict stands behind a keyword, "Better: A", "Grade: 4", or is the whole reply, "A", "4/5". Two different
ones in a reply are none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_MARKS = " \t\r\n*_`#\"'“”‘’()[]{}<>.,;:!"
"""What may stand around a word without changing it."""
_CHOICE_KEY = r"(?:better|best|winner|verdict|preferred|preference)"
_GRADE_KEY = r"(?:grade|score|rating)"
_HEAD = r"(?:(?:the\s+)?(?:answer|response)\s+)?"
_JOINED = r"\s*(?:and|or|and/or|[/&+=])\s*"
"""Between two verdicts of which a reply chooses neither: "Better: A or B"."""


def read_choice(
    text: str,
    labels: Sequence[str],
) -> int | None:
    """The index of the label that a reply chooses."""
    words = "|".join(re.escape(label) for label in labels)
    behind_key = re.compile(
        rf"\b{_CHOICE_KEY}\b(?:\s+(?:answer|response))?[\s*_`]*[:=][\s*_`\"'\[(]*{_HEAD}({words})(?!\w)"
        rf"(?!{_JOINED}{_HEAD}(?:{words})(?!\w))",
        re.IGNORECASE,
    )
    chosen = {_index_of(match[1], labels) for match in behind_key.finditer(text)}
    if not chosen:
        alone = re.fullmatch(
            rf"{_HEAD}({words})", text.strip(_MARKS), flags=re.IGNORECASE
        )
        if alone is not None:
            chosen = {_index_of(alone[1], labels)}
    return chosen.pop() if len(chosen) == 1 else None


def _index_of(
    word: str,
    labels: Sequence[str],
) -> int:
    folded = [label.casefold() for label in labels]
    return folded.index(word.casefold())


def read_grade(
    text: str,
    lowest: int,
    highest: int,
) -> float | None:
    """The grade of a reply, between the two bounds; halves are allowed."""
    number = rf"([0-9]+(?:\.[0-9]+)?)(?:\s*/\s*{highest})?(?![\w/]|\.[0-9])"
    # "3 or 4", "3-4", "3 / 4" of 5, "3, 4".
    number += rf"(?!(?:{_JOINED}|\s*(?:to|[-–—,])\s*)[0-9])"
    behind_key = re.compile(
        rf"\b{_GRADE_KEY}\b[\s*_`]*[:=][\s*_`\"'\[(]*{number}", re.IGNORECASE
    )
    grades = {float(match[1]) for match in behind_key.finditer(text)}
    if not grades:
        alone = re.fullmatch(number, text.strip(_MARKS))
        if alone is not None:
            grades = {float(alone[1])}
    if len(grades) != 1:
        return None
    (grade,) = grades
    return grade if lowest <= grade <= highest else None


def read_yes_no(
    text: str,
    yes: str,
    no: str,
) -> bool | None:
    """Whether a reply begins with yes; None when it begins with neither, or with both.

    "Yes, there is." is a yes, "Yes and no." is neither.
    """
    words = f"{re.escape(yes)}|{re.escape(no)}"
    begins = rf"({words})(?!\w)(?!{_JOINED}(?:{words})(?!\w))"
    match = re.match(begins, text.strip(_MARKS), flags=re.IGNORECASE)
    if match is None:
        return None
    return match[1].casefold() == yes.casefold()


def probabilities(logprobs: Sequence[float]) -> list[float] | None:
    """The options' probabilities among themselves; None when none of them is likely at all, or one is no number."""
    highest = max(logprobs)
    if not math.isfinite(highest) or any(math.isnan(logprob) for logprob in logprobs):
        return None
    masses = [math.exp(logprob - highest) for logprob in logprobs]
    total = sum(masses)
    return [mass / total for mass in masses]


def first_wins(choice: int) -> float:
    """What the choice of a label is worth to the first answer: 1, 0, or 0.5 for the label of neither."""
    return (1.0, 0.0, 0.5)[choice]


def both_orders(
    forward: float | None,
    backward: float | None,
) -> float | None:
    """What the first answer wins, asked in both orders: the mean, and 0.5 where the two contradict each other.

    Args:
        forward: in 0-1, when the first answer stood first.
        backward: the same answer's part, when it stood second.
    """
    if forward is None or backward is None:
        return None
    # One order prefers the first answer, the other the second: it was the place that won.
    if (forward - 0.5) * (backward - 0.5) < 0:
        return 0.5
    return (forward + backward) / 2

"""Words of an answer and how far two answers are apart, in any script and in bounded time."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_WORDS = 10_000
"""`distance` reads so many words of a side; the share of longer answers is counted, never guessed."""

_SINGLE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_MARKS = (
    r"\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0eff"
)
WORD = re.compile(rf"[{_SINGLE}]|(?:[^\W{_SINGLE}]|[{_MARKS}]|(?<=\w)['’](?=\w))+")
"""A run of letters and digits with their accents and apostrophes; a Chinese character or Japanese kana is a word."""


def words(text: str) -> list[str]:
    """The words of a text in order, case folded, without punctuation."""
    return [word.casefold() for word in WORD.findall(text)]


def edit_distance(left: Sequence[str], right: Sequence[str]) -> int:
    """Levenshtein distance in words: the fewest insertions, deletions and replacements from one to the other.

    Bit-parallel over whole columns of the table (Myers 1999, in Hyyrö's form for the global distance): one step per
    word of the shorter side, on integers with a bit per word of the longer one.
    """
    left, right = _trimmed(left, right)
    if len(left) < len(right):
        left, right = right, left
    if not right:
        return len(left)
    places: dict[str, int] = {}
    for index, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << index
    full, last, distance = (1 << len(left)) - 1, 1 << (len(left) - 1), len(left)
    rises, falls = (
        full,
        0,
    )  # bit i: the table rises or falls by one from row i to row i + 1 of this column
    for word in right:
        equal = places.get(word, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        up, down = falls | ~(diagonal | rises) & full, rises & diagonal
        distance += bool(up & last) - bool(down & last)
        up, down = up << 1 | 1, down << 1
        rises = (down | ~(diagonal | up)) & full
        falls = up & diagonal & full
    return distance


def distance(left: Sequence[str], right: Sequence[str]) -> float:
    """Edit distance over the length of the longer side: 0 equal words, 1 nothing in common; first `MAX_WORDS` only."""
    left, right = left[:MAX_WORDS], right[:MAX_WORDS]
    longer = max(len(left), len(right))
    return edit_distance(left, right) / longer if longer else 0.0


def _trimmed(
    left: Sequence[str], right: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    """Without the common beginning and end, which cost nothing."""
    shorter, begin, end = min(len(left), len(right)), 0, 0
    while begin < shorter and left[begin] == right[begin]:
        begin += 1
    while end < shorter - begin and left[-1 - end] == right[-1 - end]:
        end += 1
    return left[begin : len(left) - end], right[begin : len(right) - end]

"""Words of an answer and how far two answers are apart, in any script and in bounded time."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

MAX_WORDS = 10_000
"""`distance` compares at most this many words of each answer."""

# Scripts without spaces: Japanese kana and Chinese characters.
_SINGLE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Accents and vowel signs of Latin, Hebrew, Arabic and Indic scripts, which \w does not match.
_MARKS = (
    r"\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0eff"
)
WORD = re.compile(rf"[{_SINGLE}]|(?:[^\W{_SINGLE}]|[{_MARKS}]|(?<=\w)['’](?=\w))+")
"""A run of letters and digits with their accents and apostrophes. Every Chinese character and Japanese kana, written
without spaces, is a word by itself."""


def words(text: str) -> list[str]:
    """The words of a text in order, case-folded and without punctuation."""
    return [word.casefold() for word in WORD.findall(text)]


def edit_distance(left: Sequence[str], right: Sequence[str]) -> int:
    """Levenshtein distance: the fewest insertions, deletions and replacements of words from `left` to `right`."""
    return Levenshtein.distance(left, right)


def distance(left: Sequence[str], right: Sequence[str]) -> float:
    """Edit distance over the length of the longer side: 0 for equal words, 1 for nothing in common.

    Only the first `MAX_WORDS` of each side are compared. `Anatomy` counts the pairs of which that leaves words out.
    """
    left = left[:MAX_WORDS]
    right = right[:MAX_WORDS]
    longer = max(len(left), len(right))
    if not longer:
        return 0.0
    return edit_distance(left, right) / longer

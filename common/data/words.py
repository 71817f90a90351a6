"""Words of an answer and how far two answers are apart, in any script and in bounded time."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_WORDS = 10_000
"""`distance` compares at most this many words of each answer."""

# Scripts without spaces: Japanese kana and Chinese characters.
_SINGLE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Accents and vowel signs, which Python's \w does not match.
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
    """Levenshtein distance: the fewest insertions, deletions and replacements of words that turn `left` into `right`.

    Bit-parallel (Myers 1999, in the form of Hyyrö 2003 for the distance of whole sequences). The table of distances
    has a row per word of the longer side and a column per word of the shorter one. Neighbouring entries differ by at
    most one, so a column is two integers: bit i of `rises` (`falls`) says that row i + 1 is one more (less) than row i.
    """
    left, right = _without_common_ends(left, right)
    if len(left) < len(right):
        left, right = right, left
    if not right:
        return len(left)
    rows_of_word: dict[str, int] = {}
    for row, word in enumerate(left):
        row_bit = 1 << row
        rows_of_word[word] = rows_of_word.get(word, 0) | row_bit
    all_rows = (1 << len(left)) - 1
    last_row = 1 << (len(left) - 1)
    # The first column: from nothing to so many words of `left`.
    distance = len(left)
    rises = all_rows
    falls = 0
    for word in right:
        equal = rows_of_word.get(word, 0)
        # Rows whose entry equals its upper left neighbour: the words are equal, or a cheaper path arrives. The sum
        # carries such a path down over a run of rising rows.
        carried = (equal & rises) + rises
        diagonal = (carried ^ rises) | equal | falls
        # The differences to the entries at the right.
        right_rises = falls | ~(diagonal | rises) & all_rows
        right_falls = rises & diagonal
        if right_rises & last_row:
            distance += 1
        if right_falls & last_row:
            distance -= 1
        # The first row rises with every column, being the distance from nothing to so many words of `right`.
        right_rises = right_rises << 1 | 1
        right_falls = right_falls << 1
        rises = (right_falls | ~(diagonal | right_rises)) & all_rows
        falls = right_rises & diagonal & all_rows
    return distance


def distance(left: Sequence[str], right: Sequence[str]) -> float:
    """Edit distance over the length of the longer side: 0 for equal words, 1 for nothing in common.

    Only the first `MAX_WORDS` of each side are compared. `Anatomy` counts the pairs for which that leaves words out.
    """
    left = left[:MAX_WORDS]
    right = right[:MAX_WORDS]
    longer = max(len(left), len(right))
    if not longer:
        return 0.0
    return edit_distance(left, right) / longer


def _without_common_ends(
    left: Sequence[str],
    right: Sequence[str],
) -> tuple[Sequence[str], Sequence[str]]:
    """Cut off the common beginning and end, which cost nothing."""
    shorter = min(len(left), len(right))
    num_begin = 0
    while num_begin < shorter and left[num_begin] == right[num_begin]:
        num_begin += 1
    # Not into the beginning: "a a" and "a" have one word in common, not two.
    num_left = shorter - num_begin
    num_end = 0
    while num_end < num_left and left[-1 - num_end] == right[-1 - num_end]:
        num_end += 1
    left_end = len(left) - num_end
    right_end = len(right) - num_end
    return left[num_begin:left_end], right[num_begin:right_end]

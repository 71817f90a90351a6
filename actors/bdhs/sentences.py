"""Where to cut the sentences of an answer, and the yes/no flip of BDHS.

White space belongs to what follows it, as in `common/sentences.py`: " It sits." may be cut into " It" + " sits.". So a
text that the policy continues never ends in a space. Byte-level and SentencePiece tokenizers need that: their words
carry their leading space.
"""

from __future__ import annotations

import random
import re

_WORD_END = re.compile(r"(?<=\S)(?=\s+\S)")
_YES_OR_NO = re.compile(r"\s*(yes|no)\b", re.IGNORECASE)


def yes_or_no(answer: str) -> str | None:
    """The `yes` or `no` that an answer begins with, in small letters; None if it begins with neither."""
    match = _YES_OR_NO.match(answer)
    return None if match is None else match[1].lower()


def flip_answer(sentence: str) -> tuple[str, int] | None:
    """Exchange a leading Yes or No for the other, case kept; None if the sentence starts with neither.

    The paper's pattern has no word boundary; with one, "Not", "Now" and "Nobody" are left alone.

    Returns:
        The new sentence, and the index at which its yes or no ends.
    """
    match = _YES_OR_NO.match(sentence)
    if match is None:
        return None
    word = match[1]
    other = "no" if word.lower() == "yes" else "yes"
    if word.isupper():
        other = other.upper()
    elif word[0].isupper():
        other = other.capitalize()
    head = sentence[: match.start(1)] + other
    rest = sentence[match.end(1) :]
    return head + rest, len(head)


def split_point(
    sentence: str,
    rng: random.Random,
    first: int = 0,
) -> int:
    """A random place to cut: before the first word or between two words, uniformly; not before `first`.

    `first` itself is one of the choices (ours: a flipped answer stays in the head, else the flip would be undone).
    """
    places = [first]
    for match in _WORD_END.finditer(sentence):
        place = match.start()
        if place > first:
            places.append(place)
    return rng.choice(places)

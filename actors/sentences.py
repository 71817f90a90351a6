"""Sentences, their split points and the yes/no flip of BDHS. The paper names no splitter (ours).

White space belongs to what *follows* it, for sentences and for tails alike: "A cat. It sits." is "A cat." + " It sits."
and " It sits." may be cut into " It" + " sits.". So a text given to continue never ends in a space, as byte-level and
SentencePiece tokenizers need it, whose words carry their leading space.
"""

from __future__ import annotations

import random
import re
from itertools import pairwise

_END = re.compile(r"""[.!?]+["'”’)\]]*(?=\s)|\S(?=[ \t]*\n)""")
_ABBREVIATION = re.compile(
    r"""(?:^|[\s("'“‘])(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|approx|fig|Fig|cf|e\.g|i\.e|[A-Z](?:\.[A-Z])*)\.$"""
)
_BOUNDARY = re.compile(r"(?<=\S)(?=\s+\S)")
_ANSWER = re.compile(r"\s*(yes|no)\b", re.IGNORECASE)
_OTHER = {"yes": "no", "no": "yes"}


def split_sentences(text: str) -> list[str]:
    """Sentences whose concatenation is exactly `text`; line breaks end one too, points within a word do not.

    No sentence is empty or only white space (unless the whole text is: then there is none, or this one).
    """
    ends = [
        hit.end()
        for hit in _END.finditer(text)
        if not _ABBREVIATION.search(text, 0, hit.end())
    ]
    ends = [end for end in ends if text[end:].strip() and text[:end].strip()]
    cuts = [0, *ends, len(text)]
    return [text[start:end] for start, end in pairwise(cuts) if end > start]


def flip_answer(sentence: str) -> tuple[str, int] | None:
    """The sentence with its leading Yes and No exchanged, case kept, and where that word ends; None without one.

    The paper's pattern has no word boundary; with one "Not", "Now" and "Nobody" are left alone.
    """
    hit = _ANSWER.match(sentence)
    if hit is None:
        return None
    word = hit[1]
    other = _OTHER[word.lower()]
    other = (
        other.upper()
        if word.isupper()
        else other.capitalize()
        if word[0].isupper()
        else other
    )
    return sentence[: hit.start(1)] + other + sentence[hit.end(1) :], hit.start(
        1
    ) + len(other)


def split_point(sentence: str, rng: random.Random, first: int = 0) -> int:
    """A random place to cut: before the first word or between two words, uniformly; not before `first`.

    `first` itself is one of the choices (ours: a flipped answer stays in the head, else the flip would be undone).
    """
    places = [
        first,
        *(hit.start() for hit in _BOUNDARY.finditer(sentence) if hit.start() > first),
    ]
    return rng.choice(places)

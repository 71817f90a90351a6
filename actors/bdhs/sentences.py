"""Sentences of an answer, where to cut them, and the yes/no flip of BDHS. The paper names no splitter (ours).

White space belongs to what follows it: "A cat. It sits." is "A cat." + " It sits.", and " It sits." may be cut into
" It" + " sits.". So a text that the policy continues never ends in a space. Byte-level and SentencePiece tokenizers
need that: their words carry their leading space.
"""

from __future__ import annotations

import random
import re

# Points with the quotes and brackets that close after them, or the last character of a line.
_END = re.compile(r"""[.!?]+["'”’)\]]*(?=\s)|\S(?=[ \t]*\n)""")
# Words whose point ends no sentence, and initials.
_ABBREVIATION = re.compile(
    r"""(?:^|[\s("'“‘])(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|approx|fig|Fig|cf|e\.g|i\.e|[A-Z](?:\.[A-Z])*)\.$"""
)
_WORD_END = re.compile(r"(?<=\S)(?=\s+\S)")
_YES_OR_NO = re.compile(r"\s*(yes|no)\b", re.IGNORECASE)


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences whose concatenation is exactly the text.

    Line breaks end a sentence, too; points within a word do not. No sentence is empty or only white space, unless the
    whole text is: the result is then empty or that one text.
    """
    sentences = []
    start = 0
    for match in _END.finditer(text):
        end = match.end()
        if _ABBREVIATION.search(text, 0, end):
            continue
        before = text[:end].strip()
        after = text[end:].strip()
        # White space at either end of the text stays with the first or last sentence.
        if before and after:
            sentences.append(text[start:end])
            start = end
    if start < len(text):
        sentences.append(text[start:])
    return sentences


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

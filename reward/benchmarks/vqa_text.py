"""How VQA's evaluation makes two short answers alike before it compares them (visualqa.org, and its copy in MMF).

    "The two dogs."  ->  "2 dogs"        "DON'T", "dont"  ->  "don't"        "1,000"  ->  "1000"

Its peculiarities are kept, so that figures compare: a full stop stays before a digit alone, and other marks become
spaces within a word but vanish beside a space.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_ARTICLES = ("a", "an", "the")
_NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
        start=1,
    )
}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_STOP = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
MAX_STOPS = 32
"""So many full stops are taken out: the original gives a flag where a count is expected."""

_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
    not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've let's
"""
"""Words that may be written without one or all of their apostrophes; "its" and "well" are words of their own."""


def _spellings() -> dict[str, str]:
    """Spelling without one or all apostrophes -> the word."""
    spellings: dict[str, str] = {}
    for word in _CONTRACTIONS.split():
        spellings[word.replace("'", "")] = word
        parts = word.split("'")
        for at in range(1, len(parts)):
            before = "'".join(parts[:at])
            after = "'".join(parts[at:])
            spellings[before + after] = word
    return spellings


_WITH_APOSTROPHES = _spellings()


def normalised(answer: str) -> str:
    """The form in which answers are compared."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = []
    for word in _without_marks(text).lower().split():
        word = _NUMBERS.get(word, word)
        if word not in _ARTICLES:
            words.append(_WITH_APOSTROPHES.get(word, word))
    return " ".join(words)


def _without_marks(text: str) -> str:
    has_comma = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or has_comma else " ")
    return _STOP.sub("", cleaned, count=MAX_STOPS)


THIRTIETHS = 30


def agreement(
    answer: str,
    human_answers: Sequence[str],
) -> int:
    """VQA accuracy of an answer in thirtieths: the mean over all ten people of min(1, agreeing others / 3).

    For every person left out in turn, the other nine are asked; three of them who agree make a right answer.
    """
    counts = Counter(map(normalised, human_answers))
    num_agree = counts[normalised(answer)]
    num_others = len(human_answers) - num_agree
    # Those who agree are left out in `num_agree` of the turns.
    left_out = num_agree * min(3, num_agree - 1)
    kept = num_others * min(3, num_agree)
    return left_out + kept

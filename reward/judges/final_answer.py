"""Reading what a model's text answers in the end: the words, the number or the option."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_SAID = re.compile(r"\banswer(?:\s+is\b|\s*:)[ \t]*:?(.*)", re.IGNORECASE)
_BOXED = "\\boxed{"

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+"
# A dash right behind a word or number is none of the number's: "3-4", "B-2".
_SIGNED = re.compile(rf"((?<![\w.])[-+\u2212])?({_NUMBER})(?:\s*/\s*({_NUMBER}))?")

_ARTICLES = {"a", "an", "the"}
_DIGITS = {
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}

_ALONE = re.compile(r"\W*([A-Za-z])\W*")
_LEADING = re.compile(r"\A\s*\(?([A-Za-z])[).:](?:\s|$)")
_IN_BRACKETS = re.compile(r"\(([A-Z])\)")
_NAMED = re.compile(
    r"\b(?:option|choice|answer)\s+(?:is\s+)?\(?([A-Z])\b", re.IGNORECASE
)


def final_answer(text: str) -> str:
    r"""The last \boxed{…}, else the last <answer>…</answer>, else what the last "answer is" or "answer:" says.

    A text without any of them is its own answer.
    """
    boxed = _boxed(text)
    if boxed is not None:
        return boxed
    for pattern in (_TAGGED, _SAID):
        matches = pattern.findall(text)
        if matches and matches[-1].strip():
            return str(matches[-1]).strip()
    return text.strip()


def _boxed(text: str) -> str | None:
    """The inside of the last \\boxed{…}, which may hold braces; None when there is none, or it does not end."""
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    depth = 1
    begin = start + len(_BOXED)
    for index in range(begin, len(text)):
        letter = text[index]
        if letter == "{":
            depth += 1
        if letter == "}":
            depth -= 1
        if depth == 0:
            return text[begin:index].strip()
    return None


def normalized(text: str) -> str:
    """A short answer without what does not change its meaning: case, punctuation, articles, number words, spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # A dot or comma inside a number stays.
    plain = re.sub(r"(?<!\d)[.,]|[.,](?!\d)", " ", folded)
    others = string.punctuation.replace(".", "").replace(",", "")
    plain = plain.translate(str.maketrans(others, " " * len(others)))
    words: list[str] = []
    for word in plain.split():
        if word not in _ARTICLES:
            words.append(_DIGITS.get(word, word))
    return " ".join(words)


def read_number(text: str) -> float | None:
    """The last number of a text; "1,234.5", "3/4" and "1e-3" are one number each. None when there is none."""
    numbers = list(_SIGNED.finditer(text))
    if not numbers:
        return None
    sign, whole, divisor = numbers[-1].groups()
    number = float(whole.replace(",", ""))
    if divisor is not None:
        below = float(divisor.replace(",", ""))
        if below == 0:
            return None
        number /= below
    return -number if sign in ("-", "\u2212") else number


def read_choice(text: str, options: Sequence[str] = ()) -> str | None:
    """The capital letter of the option that a text chooses; None when it chooses none, or more than one.

    "B", "(b)", "B) the cat", "option B", "I would say (B)", or the text of an option. "A dog" is no letter.
    """
    alone = _ALONE.fullmatch(text)
    if alone:
        return _known(alone.group(1).upper(), options)
    chosen = [*_LEADING.findall(text), *_NAMED.findall(text)]
    letters = {letter.upper() for letter in chosen}
    letters.update(_IN_BRACKETS.findall(text))
    if letters:
        return _known(letters.pop(), options) if len(letters) == 1 else None
    wanted = normalized(text)
    for index, option in enumerate(options):
        if normalized(option) == wanted:
            return chr(ord("A") + index)
    return None


def _known(letter: str, options: Sequence[str]) -> str | None:
    """The letter, unless there are options and it is none of theirs."""
    index = ord(letter) - ord("A")
    return letter if not options or index < len(options) else None

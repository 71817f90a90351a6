"""The objects that a text names, by CHAIR's rules (Rohrbach et al. 2018, arXiv 1809.02156, and their script).

    "Two hot dogs on a toilet seat"  ->  hot dog, toilet

Words are looked up in CHAIR's synonyms file, an object a line, its name first: `hot dog` or `bench, pew`. Pairs of
words that are one thing are taken before single words; a baby or adult animal is the animal, not a person; a passenger
train is a train; a toilet's seat is no chair.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from reward.benchmarks.plurals import plurals

_TOKEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*|[^\w\s]")

_ANIMALS = (
    "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub",
)  # fmt: skip
_VEHICLES = ("jet", "train")
_OTHER_THINGS = ("home plate", "train track")
"""Pairs of words that are one thing and no object of the list."""
_SAME = {"bow tie": "tie", "toilet seat": "toilet"}


@dataclass(frozen=True, slots=True)
class Mention:
    """An object in a text: its name in the synonyms file, and where it stands."""

    name: str
    begin: int
    end: int


class ObjectWords:
    """The words for objects.

    Args:
        lines: an object each, its name and its synonyms.
    """

    def __init__(self, lines: Iterable[list[str]]) -> None:
        self.names: dict[str, str] = {}
        """Word -> the object's name."""
        for words in lines:
            for word in words:
                self.names[word] = words[0]
        self._singular: dict[str, str] = {}
        """Single word or pair, in every number -> the word or pair that it stands for."""
        for pair, word in _pairs(self.names):
            self._add(pair, word)
        for word in self.names:
            self._add(word, word)
        # A word that the file spells out is no plural of another.
        for word in self.names:
            if word not in _SAME:
                self._singular[word] = word

    def _add(
        self,
        form: str,
        word: str,
    ) -> None:
        for text in (form, *plurals(form)):
            self._singular.setdefault(text, word)

    def mentions(self, text: str) -> list[Mention]:
        """The objects that a text names, in order, repeats included."""
        words: list[tuple[str, int, int]] = []
        tokens = list(_TOKEN.finditer(text))
        at = 0
        while at < len(tokens):
            token = tokens[at]
            single = token.group().lower()
            pair = " ".join(following.group() for following in tokens[at : at + 2])
            pair = pair.lower()
            length = 1
            word = self._singular.get(single, single)
            if " " in pair and pair in self._singular:
                length = 2
                word = self._singular[pair]
            last = tokens[at + length - 1]
            words.append((word, token.start(), last.end()))
            at += length
        has_toilet = any(word == "toilet" for word, _, _ in words)
        mentions: list[Mention] = []
        for word, begin, end in words:
            if has_toilet and word == "seat":
                continue
            if word in self.names:
                mentions.append(Mention(self.names[word], begin, end))
        return mentions

    def named(self, text: str) -> list[str]:
        """The names of the mentioned objects."""
        return [mention.name for mention in self.mentions(text)]


def _pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """(pair of words, the word that it stands for)."""
    pairs = [(name, _SAME.get(name, name)) for name in names if name.count(" ") == 1]
    pairs += [(thing, thing) for thing in _OTHER_THINGS]
    pairs += _SAME.items()
    for animal in _ANIMALS:
        pairs += [(f"baby {animal}", animal), (f"adult {animal}", animal)]
    for vehicle in _VEHICLES:
        pairs.append((f"passenger {vehicle}", vehicle))
    return pairs


def read_synonyms(
    path: str,
    key: str,
) -> ObjectWords:
    """The words of a synonyms file (UserError when it cannot be read or holds no words)."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}: expected CHAIR's synonyms file, got {path} ({error}); check the path"
        ) from error
    lines: list[list[str]] = []
    for line in text.splitlines():
        words = [word.strip().lower() for word in line.split(",")]
        words = [word for word in words if word]
        if words:
            lines.append(words)
    if not lines:
        raise UserError(
            f"{key}: expected an object a line in {path}, got an empty file; give CHAIR's synonyms.txt"
        )
    return ObjectWords(lines)

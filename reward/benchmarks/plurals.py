"""Plural forms of English nouns, made from a word list.

CHAIR's and AMBER's scripts take plurals back by general libraries. Here the words that are looked for are known, so
their plurals are made instead: nothing outside of the list can be mistaken for a word of it.
"""

from __future__ import annotations

_IRREGULAR = {
    "child": "children",
    "person": "people",
    "mouse": "mice",
    "goose": "geese",
    "foot": "feet",
    "tooth": "teeth",
    "ox": "oxen",
}
_TO_VES = (
    "knife",
    "wife",
    "life",
    "leaf",
    "loaf",
    "calf",
    "half",
    "shelf",
    "wolf",
    "thief",
    "scarf",
)
_NO_MEN = ("human", "german", "roman", "ottoman")
_VOWELS = "aeiou"
_HISSES = ("s", "x", "z", "ch", "sh")


def plurals(noun: str) -> list[str]:
    """The plurals of a noun; of several words the last one changes ("hot dogs").

    Regular forms are given beside irregular ones, since people write both ("persons").
    """
    forms = [*_irregular(noun), *_regular(noun)]
    return list(dict.fromkeys(forms))


def _irregular(noun: str) -> list[str]:
    for singular, plural in _IRREGULAR.items():
        if _ends_with_word(noun, singular):
            return [noun.removesuffix(singular) + plural]
    for singular in _TO_VES:
        if noun.endswith(singular):
            stem = noun.removesuffix("e").removesuffix("f")
            return [f"{stem}ves"]
    if noun.endswith("man") and not noun.endswith(_NO_MEN):
        return [f"{noun[:-2]}en"]
    return []


def _ends_with_word(
    noun: str,
    word: str,
) -> bool:
    """Whether a noun is the word, ends with it as a word, or is a compound of it; "ox" ends no compound here."""
    if word == "ox":
        return noun.split(" ")[-1] == word
    return noun.endswith(word)


def _regular(noun: str) -> list[str]:
    if noun.endswith(_HISSES):
        return [f"{noun}es"]
    if noun.endswith("y") and noun[-2:-1] not in _VOWELS:
        return [f"{noun[:-1]}ies"]
    if noun.endswith("o"):
        return [f"{noun}s", f"{noun}es"]
    return [f"{noun}s"]

"""A yes or a no, as the judges of rendered worlds read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, TypeAlias

Answer: TypeAlias = Literal["yes", "no"]

CONTRACTED_NOT = "n['\u2018\u2019\u02bc\u2032\uff07`\u00b4]t\\b"
"""The end of "isn't" as a pattern, with every apostrophe that is typed, printed or put in its place."""
_DENIAL = re.compile(rf"\b(?:no|not)\b|{CONTRACTED_NOT}", re.IGNORECASE)
_YES = re.compile(r"\byes\b", re.IGNORECASE)
WORDS: Mapping[Answer, str] = {"yes": "Yes", "no": "No"}
"""An answer as the policies of the worlds are taught to begin with it."""


def read_answer(text: str) -> Answer | None:
    """The answer of the first sentence, None when it has none.

    Stricter than POPE's rule, for which anything that is no "no" is a "yes": that would pay for rambling.
    """
    first_sentence = text.strip().split(".")[0]
    if _DENIAL.search(first_sentence):
        return "no"
    return "yes" if _YES.search(first_sentence) else None

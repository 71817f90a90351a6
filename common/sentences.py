"""The sentences of a text. No paper here names a splitter (ours).

White space belongs to what follows it: "A cat. It sits." is "A cat." + " It sits.".
"""

from __future__ import annotations

import re

# Points with the quotes and brackets that close after them, or the last character of a line.
_END = re.compile(r"""[.!?]+["'”’)\]]*(?=\s)|\S(?=[ \t]*\n)""")
# Words whose point ends no sentence, and initials.
_ABBREVIATION = re.compile(
    r"""(?:^|[\s("'“‘])(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|approx|fig|Fig|cf|e\.g|i\.e|[A-Z](?:\.[A-Z])*)\.$"""
)


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

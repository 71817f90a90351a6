"""A judge that a stranger could have written for the stickers world; it imports nothing of ours.

The tests copy it out of the tree and name the copy: `--reward.judge.kind /somewhere/judge.py:score`.
"""

import re

SAME = {"bike": "bicycle", "sunflower": "flower"}


def score(prompt, image, completions, objects, reference="", **_):  # type: ignore[no-untyped-def]
    """Captions: named and there, less what is made up. Questions: 1 for the right word, yes or no."""
    if prompt.startswith("Is there"):
        right = reference.split(",")[0].lower()
        return [float(text.lower().startswith(right)) for text in completions]
    return [caption_score(text, objects) for text in completions]


def caption_score(text, objects):  # type: ignore[no-untyped-def]
    """Share of the objects that are named, less one for each thing that is not there; 0 for no caption at all."""
    words = re.findall(r"\ban? (\w+)", text)
    named = [SAME.get(word, word) for word in words]
    made_up = [name for name in named if name not in objects]
    repeated = len(named) - len(set(named))
    seen = set(named) & set(objects)
    return len(seen) / len(objects) - len(made_up) - repeated

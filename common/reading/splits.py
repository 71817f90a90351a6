"""The splits of a data set, as the names of its files tell them: train-00000-of-00001.parquet, val/data.jsonl, …

Only words that `datasets` knows count: a set whose files are named otherwise has no splits, and is read as a whole.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

TRAIN = "train"
ALL = "all"
"""What a user gives to read every split."""

_WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}


def split_of(path: str) -> str | None:
    """The split that a file is part of by its name, else by the nearest of its folders that says one."""
    parts = PurePosixPath(path).parts
    for part in reversed(parts):
        split = split_word(part)
        if split is not None:
            return split
    return None


def split_word(name: str) -> str | None:
    """The split that a name speaks of; None for none, or for several (train_test.json)."""
    words = re.split(r"[^a-z]+", name.lower())
    splits = {_WORDS[word] for word in words if word in _WORDS}
    return splits.pop() if len(splits) == 1 else None


def split_key(key: str) -> str | None:
    """The split that a key of a JSON object is, if it is nothing but its name."""
    return _WORDS.get(key.lower())


def canonical(split: str) -> str:
    """The name under which a split is known here: dev is validation."""
    return _WORDS.get(split.lower(), split)

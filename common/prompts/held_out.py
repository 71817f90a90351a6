"""Which prompts are held out: all prompts about a picture go to one side, whatever the order of the rows."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from common.data.records_on_disk import Numbers
from common.prompts.survey import PromptSet


def held_out(
    prompts: PromptSet,
    among: Numbers,
    count: int,
    salt: str,
) -> Numbers:
    """The row numbers of at most `count` prompts, in the order of the rows.

    Prompts that share a picture, also by way of a third prompt, are a group. Groups are taken in the order of a hash of
    their smallest key and `salt`; one that is too large for what is left to take is passed over.

    Args:
        prompts: with the keys of their pictures.
        among: the row numbers to choose from.
    """
    members: dict[int, list[int]] = {}
    groups = _groups(prompts, among)
    for number, group in zip(among.tolist(), groups, strict=True):
        members.setdefault(group, []).append(number)

    def place(group: int) -> bytes:
        text = f"{salt}:{group}"
        return blake2b(text.encode(), digest_size=8).digest()

    chosen: list[int] = []
    for group in sorted(members, key=place):
        num_left = count - len(chosen)
        if len(members[group]) <= num_left:
            chosen += members[group]
        if len(chosen) == count:
            break
    chosen.sort()
    return np.array(chosen, np.int64)


def shared(
    prompts: PromptSet,
    others: PromptSet,
    numbers: Numbers,
) -> Numbers:
    """The row numbers of `prompts` that are about a picture that `others` has in its rows `numbers`."""
    is_among = np.isin(others.key_rows, numbers)
    keys = others.keys[is_among]
    is_shared = np.isin(prompts.keys, keys)
    return np.unique(prompts.key_rows[is_shared])


def _groups(
    prompts: PromptSet,
    among: Numbers,
) -> list[int]:
    """The group of each of these rows, named by the smallest key in it; a prompt without a picture is alone."""
    # Keys are sorted, so that of two pictures the one with the smaller key has the smaller number.
    keys, pictures = np.unique(prompts.keys, return_inverse=True)
    joined = _join(prompts.key_rows, pictures, len(keys))
    # The first picture of a row stands for all of its pictures.
    rows, firsts = np.unique(prompts.key_rows, return_index=True)
    picture_of_row = dict(
        zip(
            rows.tolist(),
            pictures[firsts].tolist(),
            strict=True,
        )
    )
    groups: list[int] = []
    for number in among.tolist():
        picture = picture_of_row.get(number)
        if picture is None:
            groups.append(-1 - number)
            continue
        root = _root(joined, picture)
        groups.append(int(keys[root]))
    return groups


def _join(
    key_rows: Numbers,
    pictures: Numbers,
    num_pictures: int,
) -> Numbers:
    """Join the pictures that stand in one prompt: each points to a smaller one of its group, or to itself."""
    joined = np.arange(num_pictures)
    is_same_row = key_rows[1:] == key_rows[:-1]
    for index in np.flatnonzero(is_same_row):
        first = _root(joined, pictures[index])
        second = _root(joined, pictures[index + 1])
        smaller = min(first, second)
        larger = max(first, second)
        joined[larger] = smaller
    return joined


def _root(joined: Numbers, picture: int) -> int:
    while joined[picture] != picture:
        # Halve the way for whoever comes next.
        joined[picture] = joined[joined[picture]]
        picture = joined[picture]
    return int(picture)

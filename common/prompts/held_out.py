"""Which prompts are held out: all prompts about a picture go to one side, whatever the order of the rows."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from common.data.records_on_disk import Numbers
from common.prompts.survey import PromptSet


def held_out(prompts: PromptSet, among: Numbers, count: int, salt: str) -> Numbers:
    """The row numbers of at most `count` prompts, in the order of the rows.

    Prompts that share a picture, also by way of a third prompt, are a group. Groups are taken in the order of a hash of
    their smallest key and `salt`; one that is too large for what is left to take is passed over.

    Args:
        prompts: with the keys of their pictures.
        among: the row numbers to choose from.
    """
    groups = _groups(prompts, among)
    members: dict[int, list[int]] = {}
    for number, group in zip(among.tolist(), groups.tolist(), strict=True):
        members.setdefault(group, []).append(number)
    chosen: list[int] = []
    for group in sorted(members, key=lambda key: _place(key, salt)):
        if len(chosen) + len(members[group]) <= count:
            chosen += members[group]
        if len(chosen) == count:
            break
    return np.array(sorted(chosen), np.int64)


def shared(prompts: PromptSet, others: PromptSet, numbers: Numbers) -> Numbers:
    """The row numbers of `prompts` that are about a picture that `others` has in its rows `numbers`."""
    keys = others.keys[np.isin(others.key_rows, numbers)]
    return np.unique(prompts.key_rows[np.isin(prompts.keys, keys)])


def _groups(prompts: PromptSet, among: Numbers) -> Numbers:
    """The group of each of these rows, named by the smallest key in it; a prompt without a picture is alone."""
    keys, picture_of = np.unique(prompts.keys, return_inverse=True)
    # Pictures that stand in one prompt are joined: each points to a smaller one of its group, or to itself.
    parent = np.arange(len(keys))
    same_row = prompts.key_rows[1:] == prompts.key_rows[:-1]
    for index in np.flatnonzero(same_row).tolist():
        first = _root(parent, picture_of[index])
        second = _root(parent, picture_of[index + 1])
        parent[max(first, second)] = min(first, second)
    # The first picture of a row stands for all of its pictures.
    rows, first_of_row = np.unique(prompts.key_rows, return_index=True)
    place = np.searchsorted(rows, among)
    groups = np.empty(len(among), np.int64)
    for index, number in enumerate(among.tolist()):
        has_picture = place[index] < len(rows) and rows[place[index]] == number
        if has_picture:
            picture = picture_of[first_of_row[place[index]]]
            groups[index] = keys[_root(parent, picture)]
        else:
            groups[index] = -1 - number
    return groups


def _root(parent: npt.NDArray[np.int64], picture: int) -> int:
    while parent[picture] != picture:
        # Halve the way for whoever comes next.
        parent[picture] = parent[parent[picture]]
        picture = parent[picture]
    return int(picture)


def _place(key: int, salt: str) -> bytes:
    return blake2b(f"{salt}:{key}".encode(), digest_size=8).digest()

"""Which tokens of two answers differ: dense DPO weighs them more (RLHF-V, arXiv 2312.00849)."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from learner.encoded import EncodedPair


def changes(
    chosen: Sequence[int], rejected: Sequence[int], min_match: int
) -> tuple[list[bool], list[bool]]:
    """For every token of both answers whether it is outside of every run of at least `min_match` common tokens.

    Runs are difflib's matching blocks. What only one answer has is changed there, and nothing in the other.
    """
    changed = [True] * len(chosen), [True] * len(rejected)
    for match in SequenceMatcher(
        None, chosen, rejected, autojunk=False
    ).get_matching_blocks():
        if match.size >= min_match:
            for side, start in zip(changed, (match.a, match.b), strict=True):
                side[start : start + match.size] = [False] * match.size
    return changed


def changed_mask(
    pairs: Sequence[EncodedPair], min_matches: Sequence[int | None], width: int
) -> Tensor:
    """`changes` of all pairs, bool [2·pairs, width], chosen rows first; False for pairs with None."""
    mask = torch.zeros(2 * len(pairs), width, dtype=torch.bool)
    for place, (pair, min_match) in enumerate(zip(pairs, min_matches, strict=True)):
        if min_match is not None:
            sides = changes(pair.chosen, pair.rejected, min_match)
            for row, side in zip((place, len(pairs) + place), sides, strict=True):
                mask[row, : len(side)] = torch.tensor(side)
    return mask

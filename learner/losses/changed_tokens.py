"""Which tokens of two answers differ: dense DPO weighs them more (RLHF-V, arXiv 2312.00849)."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from learner.batch.encoded import EncodedPair


def changed_tokens(
    chosen: Sequence[int],
    rejected: Sequence[int],
    min_match: int,
) -> tuple[list[bool], list[bool]]:
    """For every token of both answers, whether it lies outside every common run of at least `min_match` tokens.

    Runs are difflib's matching blocks. Tokens that only one answer has are changed there; the other has none for them.
    """
    chosen_changed = [True] * len(chosen)
    rejected_changed = [True] * len(rejected)
    # autojunk would ignore tokens that are frequent in answers of 200 tokens and more.
    matcher = SequenceMatcher(None, chosen, rejected, autojunk=False)
    for match in matcher.get_matching_blocks():
        if match.size < min_match:
            continue
        unchanged = [False] * match.size
        chosen_end = match.a + match.size
        rejected_end = match.b + match.size
        chosen_changed[match.a : chosen_end] = unchanged
        rejected_changed[match.b : rejected_end] = unchanged
    return chosen_changed, rejected_changed


def changed_token_mask(
    pairs: Sequence[EncodedPair],
    min_matches: Sequence[int | None],
    width: int,
) -> Tensor:
    """The changed tokens of all pairs, bool [2·pairs, width], chosen rows first; False for pairs with None."""
    num_pairs = len(pairs)
    mask = torch.zeros(2 * num_pairs, width, dtype=torch.bool)
    # Views of the two halves, one row per pair.
    chosen_mask, rejected_mask = mask.split(num_pairs)
    for index, pair in enumerate(pairs):
        min_match = min_matches[index]
        if min_match is None:
            continue
        chosen, rejected = changed_tokens(pair.chosen, pair.rejected, min_match)
        chosen_mask[index, : len(chosen)] = torch.tensor(chosen)
        rejected_mask[index, : len(rejected)] = torch.tensor(rejected)
    return mask

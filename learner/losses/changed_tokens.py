"""Which tokens of two answers differ: dense DPO weighs them more (RLHF-V, arXiv 2312.00849)."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from learner.batch.encoded import EncodedPair


def changed_tokens(
    chosen: Sequence[int], rejected: Sequence[int], min_match: int
) -> tuple[list[bool], list[bool]]:
    """For every token of both answers, whether it lies outside every common run of at least `min_match` tokens.

    Runs are difflib's matching blocks. Tokens that only one answer has are changed there; the other has none for them.
    """
    chosen_changed = [True] * len(chosen)
    rejected_changed = [True] * len(rejected)
    # autojunk would ignore tokens that are frequent in answers of 200 tokens and more.
    matcher = SequenceMatcher(None, chosen, rejected, autojunk=False)
    for match in matcher.get_matching_blocks():
        if match.size >= min_match:
            unchanged = [False] * match.size
            chosen_changed[match.a : match.a + match.size] = unchanged
            rejected_changed[match.b : match.b + match.size] = unchanged
    return chosen_changed, rejected_changed


def changed_token_mask(
    pairs: Sequence[EncodedPair], min_matches: Sequence[int | None], width: int
) -> Tensor:
    """The changed tokens of all pairs, bool [2·pairs, width], chosen rows first; False for pairs with None."""
    num = len(pairs)
    mask = torch.zeros(2 * num, width, dtype=torch.bool)
    for index, (pair, min_match) in enumerate(zip(pairs, min_matches, strict=True)):
        if min_match is None:
            continue
        chosen, rejected = changed_tokens(pair.chosen, pair.rejected, min_match)
        mask[index, : len(chosen)] = torch.tensor(chosen)
        mask[num + index, : len(rejected)] = torch.tensor(rejected)
    return mask

"""In which order yes/no questions ask about what is absent: POPE's three splits (arXiv 2305.10355, section 4.2)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias, get_args

PopeSplit: TypeAlias = Literal["random", "popular", "adversarial"]
POPE_SPLITS: tuple[PopeSplit, ...] = get_args(PopeSplit)


def rank_absent(
    absent: Sequence[str],
    split: PopeSplit,
    rng: random.Random,
    counts_of_training: Callable[[], Mapping[str, int]],
    companionship: Callable[[str], int],
) -> list[str]:
    """What is absent, in the order in which to ask about it; ties are broken by `rng`.

    Args:
        counts_of_training: how often each thing occurs in training scenes; the popular split asks for it.
        companionship: how strongly a thing belongs to what is present; the adversarial split asks for it.
    """
    ranked = list(absent)
    # Sorting is stable, so the shuffle decides between equals.
    rng.shuffle(ranked)
    if split == "popular":
        counts = counts_of_training()
        ranked.sort(key=lambda name: -counts[name])
    elif split == "adversarial":
        ranked.sort(key=lambda name: -companionship(name))
    return ranked

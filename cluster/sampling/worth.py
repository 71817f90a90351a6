"""How likely a prompt is to teach, from what its groups have given so far (ours; `rollout.draw = "by_worth"`).

The worth w of a group is the share of its pairs of completions that could be a preference pair: with k completions,
n_s of them of score s, and c = k(k - 1) / 2

    w = 1 - Σ_s n_s (n_s - 1) / 2c        0 for a group that was dropped

A group that the judge failed at says nothing. For two fresh completions of the prompt w is the chance that the judge
tells them apart. Policies change, so what a group gave counts half after as many groups as the set has prompts. With W
and N, the faded sums of w and of 1 over the groups of a prompt, and m, the same mean over the first groups of all
prompts,

    chance = (W + PRIOR · m) / (N + PRIOR)

A prompt that was never asked has the chance m. One that gave nothing has less, and comes back to m as time passes: no
prompt is given up.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

PRIOR = 0.5
"""How many groups the mean of first groups weighs as much as; one half was best in a simulation of the demo."""
FIRST_GUESS = (0.5, 1.0, 0)
"""One group of worth 1/2, so that there is a mean before any group has come back."""

Record: TypeAlias = tuple[float, float, int]
"""Sum of worths and sum of weights, and the round that they are faded to."""
Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"


def worth(scores: Sequence[float]) -> float:
    """The worth of a judged group of k >= 2 completions, 0-1."""
    num_pairs = len(scores) * (len(scores) - 1)
    num_equal = 0
    for score in set(scores):
        count = scores.count(score)
        num_equal += count * (count - 1)
    return 1 - num_equal / num_pairs


@dataclass(slots=True)
class Records:
    """What is remembered of groups.

    Attributes:
        by_prompt: key of a prompt -> its record.
        first: the record of the first groups of all prompts.
    """

    by_prompt: dict[int, Record] = field(default_factory=dict)
    first: Record = FIRST_GUESS


class Chances:
    """The chance of every prompt, round by round."""

    def __init__(
        self, sorted_keys: array[int], half_life: float, records: Records
    ) -> None:
        """Go on from `records`, which are advanced in place.

        Args:
            sorted_keys: of the prompts, in rising order.
            half_life: rounds after which a group counts half.
        """
        self._keys = np.asarray(sorted_keys)
        self._half_life = half_life
        self._records = records
        # Sum, weight and round by place among the sorted keys; a prompt that was never asked has no weight.
        self._sums = np.zeros(len(sorted_keys))
        self._weights = np.zeros(len(sorted_keys))
        self._rounds = np.zeros(len(sorted_keys))
        for key, record in records.by_prompt.items():
            self._set(key, record)

    def note(self, round: int, worths: Mapping[int, float]) -> None:
        """All groups of a round have come back."""
        records = self._records
        for key, value in worths.items():
            before = records.by_prompt.get(key)
            if before is None:
                records.first = self._added(records.first, value, round)
            record = self._added(before or (0.0, 0.0, round), value, round)
            records.by_prompt[key] = record
            self._set(key, record)

    def at(self, round: int) -> Floats:
        """The chances at the beginning of a round, in the order of the sorted keys."""
        total, weight, _ = self._records.first
        fades = 0.5 ** ((round - self._rounds) / self._half_life)
        sums = self._sums * fades + PRIOR * total / weight
        return sums / (self._weights * fades + PRIOR)

    def _added(self, record: Record, value: float, round: int) -> Record:
        total, weight, last_round = record
        # A round that comes late counts as of now.
        now = max(round, last_round)
        fade = 0.5 ** ((now - last_round) / self._half_life)
        return total * fade + value, weight * fade + 1, now

    def _set(self, key: int, record: Record) -> None:
        place = int(np.searchsorted(self._keys, key))
        # One that has left the set is remembered: it may come back.
        if place < len(self._keys) and self._keys[place] == key:
            self._sums[place], self._weights[place], self._rounds[place] = record

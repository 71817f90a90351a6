"""Prompts that teach nothing come back rarely (ours; `rollout.rest_solved`).

A group that ties, or whose completions are all the same, costs a rollout and gives no pair. What a prompt did last says
much about what it does next: after n such groups in a row it comes in an epoch with probability

    max(2^-n, LEAST)

A prompt that has not been asked yet, and one whose last group gave pairs, always comes. The draw is a hash of seed,
epoch and prompt, so that it does not depend on what else was drawn. No prompt is given up: a policy forgets, too.
"""

from __future__ import annotations

from common.seeding import derive_seed

LEAST = 1 / 8
"""The probability does not fall below it."""
SEED_BITS = 31
"""Of `derive_seed`."""


def chance(num_idle: int) -> float:
    """How likely a prompt comes in an epoch after so many groups in a row that taught nothing."""
    return max(pow(0.5, num_idle), LEAST)


class Resting:
    """Says which prompts an epoch passes over, and keeps count; prompts are known by the hash of their id."""

    def __init__(self, seed: int, idle: dict[int, int]) -> None:
        """Go on from `idle`: key of a prompt -> groups in a row that taught nothing. It is advanced in place."""
        self._seed = seed
        self._idle = idle

    def passes_over(self, key: int, epoch: int) -> bool:
        """Whether the prompt rests in this epoch."""
        num_idle = self._idle.get(key, 0)
        if num_idle == 0:
            return False
        draw: float = derive_seed(self._seed, "rest", epoch, key) / 2**SEED_BITS
        return draw >= chance(num_idle)

    def note(self, key: int, taught: bool) -> None:
        """A group of this prompt gave pairs, or taught nothing."""
        if taught:
            self._idle.pop(key, None)
        else:
            self._idle[key] = self._idle.get(key, 0) + 1

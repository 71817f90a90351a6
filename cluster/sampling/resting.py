"""Prompts that teach nothing come back rarely (ours; `rollout.rest_solved`).

A group that ties, or whose completions are all the same, costs a rollout and gives no pair. What a prompt did last says
much about what it does next: after n such groups in a row it comes in an epoch with probability

    max(2^-n, LEAST)

A prompt that has not been asked yet, and one whose last group gave pairs, always comes. No prompt is given up: a policy
forgets, too. Who rests in an epoch is drawn once, when the epoch begins: a resume must not draw again, since what was
in flight may have been settled meanwhile.
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
    """Draws the prompts that an epoch passes over, and keeps count; prompts are known by the hash of their id."""

    def __init__(self, seed: int, idle: dict[int, int]) -> None:
        """Go on from `idle`: key of a prompt -> groups in a row that taught nothing. It is advanced in place."""
        self._seed = seed
        self._idle = idle

    def drawn(self, epoch: int) -> list[int]:
        """The prompts that rest in an epoch that begins, in rising order."""
        resting = []
        for key, num_idle in self._idle.items():
            draw: float = derive_seed(self._seed, "rest", epoch, key) / 2**SEED_BITS
            if draw >= chance(num_idle):
                resting.append(key)
        return sorted(resting)

    def note(self, key: int, taught: bool) -> None:
        """A group of this prompt gave pairs, or taught nothing."""
        if taught:
            self._idle.pop(key, None)
        else:
            self._idle[key] = self._idle.get(key, 0) + 1

"""Who meets whom, and how the results of matches become scores. Knows neither texts nor models.

round robin    every two answers meet; a score is the mean of what an answer won, in 0-1.
tournament     answers meet in pairs; the winners go on among themselves to the best, the losers to the worst:
               about 3/2 k matches in place of k²/2. A score is (matches won - matches lost) / matches played.

       a ─┐                ┌─ a ─┐
       b ─┴─ a beats b ────┤     ├─ a is the best
       c ─┐                ├─ d ─┘
       d ─┴─ d beats c ────┤   b ─┐
                           └──    ├─ c is the worst
                               c ─┘
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

from reward.judges.faults import Fault

Pairing: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Match:
    """Two answers that were compared.

    Attributes:
        first, second: their indices in the group.
        value: what the first one won, in 0-1, 0.5 for a tie; None where the verdict could not be read.
        fault: why it could not be read.
    """

    first: int
    second: int
    value: float | None
    fault: Fault | None = None


Play: TypeAlias = Callable[[Sequence[Pairing]], Awaitable[list[Match]]]
"""Compares some pairs of answers, all at once."""


async def round_robin(num_answers: int, play: Play) -> list[Match]:
    """Every answer against every other."""
    return await play(list(combinations(range(num_answers), 2)))


async def tournament(num_answers: int, play: Play) -> list[Match]:
    """As few matches as find the best and the worst answer.

    Of a tie the earlier answer goes on as the winner. An answer without an opponent in the first round goes on in both
    directions, later in its own.
    """
    played: list[Match] = []
    upper = list(range(num_answers))
    lower: list[int] = []
    is_first_round = True
    while len(upper) > 1 or len(lower) > 1:
        upper_pairs, upper_rest = _paired(upper)
        lower_pairs, lower_rest = _paired(lower)
        matches = await play([*upper_pairs, *lower_pairs])
        played += matches
        of_upper = matches[: len(upper_pairs)]
        of_lower = matches[len(upper_pairs) :]
        upper = [_winner(match) for match in of_upper] + upper_rest
        lower = [_loser(match) for match in of_lower] + lower_rest
        if is_first_round:
            lower = [_loser(match) for match in of_upper] + upper_rest
            is_first_round = False
    return played


def _paired(answers: Sequence[int]) -> tuple[list[Pairing], list[int]]:
    """Neighbours as pairs, and the last one where their number is odd."""
    firsts, seconds = answers[::2], answers[1::2]
    pairs = list(zip(firsts, seconds, strict=False))
    return pairs, list(answers[2 * len(pairs) :])


def _winner(match: Match) -> int:
    is_upset = match.value is not None and match.value < 0.5
    return match.second if is_upset else match.first


def _loser(match: Match) -> int:
    return match.first if _winner(match) == match.second else match.second


def mean_values(num_answers: int, matches: Sequence[Match]) -> list[float] | None:
    """The mean of what each answer won, in 0-1; None when an answer has no match that could be read."""
    parts: list[list[float]] = [[] for _ in range(num_answers)]
    for match in matches:
        if match.value is not None:
            parts[match.first].append(match.value)
            parts[match.second].append(1 - match.value)
    return _means(parts)


def mean_wins(num_answers: int, matches: Sequence[Match]) -> list[float] | None:
    """(Matches won - matches lost) / matches played of each answer; None as for `mean_values`."""
    parts: list[list[float]] = [[] for _ in range(num_answers)]
    for match in matches:
        if match.value is not None:
            win = float((match.value > 0.5) - (match.value < 0.5))
            parts[match.first].append(win)
            parts[match.second].append(-win)
    return _means(parts)


def _means(parts: Sequence[Sequence[float]]) -> list[float] | None:
    if not all(parts):
        return None
    return [sum(values) / len(values) for values in parts]

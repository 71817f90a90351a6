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
        first_wins: what the answer that was shown first won, in 0-1, as the mean of both orders; None where the two
            were not asked about, or not read.
    """

    first: int
    second: int
    value: float | None
    fault: Fault | None = None
    first_wins: float | None = None


Play: TypeAlias = Callable[[Sequence[Pairing]], Awaitable[list[Match]]]
"""Compares some pairs of answers, all at once."""


async def round_robin(
    num_answers: int,
    play: Play,
) -> list[Match]:
    """Every answer against every other."""
    return await play(list(combinations(range(num_answers), 2)))


async def tournament(
    num_answers: int,
    play: Play,
) -> list[Match]:
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
        num_upper = len(upper_pairs)
        of_upper = matches[:num_upper]
        of_lower = matches[num_upper:]
        upper_losers = [_loser(match) for match in of_upper]
        upper = [_winner(match) for match in of_upper]
        lower = [_loser(match) for match in of_lower]
        if is_first_round:
            lower = [*upper_losers, *upper_rest]
            is_first_round = False
        else:
            lower += lower_rest
        upper += upper_rest
    return played


def _paired(answers: Sequence[int]) -> tuple[list[Pairing], list[int]]:
    """Neighbours as pairs, and the last one where their number is odd."""
    firsts = answers[::2]
    seconds = answers[1::2]
    pairs = list(zip(firsts, seconds, strict=False))
    num_paired = 2 * len(pairs)
    return pairs, list(answers[num_paired:])


def _winner(match: Match) -> int:
    is_upset = match.value is not None and match.value < 0.5
    return match.second if is_upset else match.first


def _loser(match: Match) -> int:
    if _winner(match) == match.first:
        return match.second
    return match.first


def mean_values(num_answers: int, matches: Sequence[Match]) -> list[float] | None:
    """The mean of what each answer won, in 0-1; None when an answer has no match that could be read."""
    gains = _Gains(num_answers)
    for match in matches:
        if match.value is None:
            continue
        gains.add(match.first, match.value)
        gains.add(match.second, 1 - match.value)
    return gains.means()


def mean_wins(num_answers: int, matches: Sequence[Match]) -> list[float] | None:
    """(Matches won - matches lost) / matches played of each answer; None as for `mean_values`."""
    gains = _Gains(num_answers)
    for match in matches:
        if match.value is None:
            continue
        win = 0.0
        if match.value > 0.5:
            win = 1.0
        elif match.value < 0.5:
            win = -1.0
        gains.add(match.first, win)
        gains.add(match.second, -win)
    return gains.means()


def mean_of_known(shares: Sequence[float | None]) -> float | None:
    """The mean of those that are known; None when none is."""
    known: list[float] = []
    for share in shares:
        if share is not None:
            known.append(share)
    if not known:
        return None
    return sum(known) / len(known)


class _Gains:
    """What each answer gained in its matches."""

    def __init__(self, num_answers: int) -> None:
        self._totals = [0.0] * num_answers
        self._counts = [0] * num_answers

    def add(self, answer: int, gain: float) -> None:
        self._totals[answer] += gain
        self._counts[answer] += 1

    def means(self) -> list[float] | None:
        """By answer; None when one has played no match."""
        if 0 in self._counts:
            return None
        means: list[float] = []
        for total, count in zip(self._totals, self._counts, strict=True):
            means.append(total / count)
        return means

"""From matches to scores."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest

from reward.judges.matches import (
    Match,
    Pairing,
    Play,
    mean_values,
    mean_wins,
    round_robin,
    tournament,
)


def by_strength(strengths: Sequence[float]) -> Play:
    """The stronger one wins, equal ones tie."""

    async def play(pairings: Sequence[Pairing]) -> list[Match]:
        matches: list[Match] = []
        for first, second in pairings:
            difference = strengths[first] - strengths[second]
            value = 0.5 + 0.5 * ((difference > 0) - (difference < 0))
            matches.append(Match(first, second, value))
        return matches

    return play


@pytest.mark.parametrize("num_answers", [2, 3, 4, 5, 6, 7])
def test_a_tournament_finds_the_best_and_the_worst(num_answers: int) -> None:
    """Whatever their places, and with 3/2 k - 2 matches for an even k, the least there can be."""
    orders = itertools.permutations(range(num_answers))
    for strengths in itertools.islice(orders, 0, None, 7):
        matches = asyncio.run(tournament(num_answers, by_strength(strengths)))
        scores = mean_wins(num_answers, matches)
        assert scores is not None
        best, worst = max(scores), min(scores)
        assert (best, worst) == (1.0, -1.0)
        assert [scores.index(best), scores.count(best)] == [
            strengths.index(num_answers - 1),
            1,
        ]
        assert [scores.index(worst), scores.count(worst)] == [strengths.index(0), 1]
        if num_answers % 2 == 0:
            assert len(matches) == 3 * num_answers // 2 - 2


def test_a_tournament_of_four_by_hand() -> None:
    """0 beats 1, 3 beats 2; then 0 beats 3 above and 2 loses to 1 below: 2/2, 0, -2/2, 0."""
    matches = asyncio.run(tournament(4, by_strength((9, 5, 1, 7))))
    pairs = [(match.first, match.second) for match in matches]
    assert pairs == [(0, 1), (2, 3), (0, 3), (1, 2)]
    assert mean_wins(4, matches) == [1.0, 0.0, -1.0, 0.0]


def test_equal_answers_all_tie() -> None:
    matches = asyncio.run(tournament(4, by_strength((1, 1, 1, 1))))
    assert mean_wins(4, matches) == [0.0] * 4


def test_a_round_robin_gives_mean_parts() -> None:
    """Of three: 0 wins both, 1 and 2 tie: (1 + 1)/2, (0 + 0.5)/2, the same."""
    matches = asyncio.run(round_robin(3, by_strength((2, 1, 1))))
    assert mean_values(3, matches) == [1.0, 0.25, 0.25]


def test_what_was_not_read_counts_for_nobody() -> None:
    matches = [Match(0, 1, 1.0), Match(0, 2, None), Match(1, 2, 0.75)]
    assert mean_values(3, matches) == [1.0, 0.375, 0.25]
    assert mean_wins(3, matches) == [1.0, 0.0, -1.0]
    assert mean_values(3, matches[:2]) is None

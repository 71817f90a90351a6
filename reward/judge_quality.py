"""How good a judge is, on pairs of which people have said the better side.

Every pair is judged twice, with its chosen side first and second, as it is and with grey pictures. `MEANINGS` says what
is measured; ties count as ½ everywhere.

Swapping the sides and averaging: Zheng et al., Judging LLM-as-a-Judge (arXiv 2306.05685, section 3.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from common.data.words import words
from common.evaluation import count_reasons
from common.records import Dropped, PreferencePair, Verdict
from common.seeding import derive_seed
from reward.suites.bootstrap import Array, Columns, estimate, intervals, ratio
from reward.suites.wins import win_of

T = TypeVar("T")

MEANINGS = {
    "agreement": "1 where the better side wins in both orders, 0 where it loses in both, else ½",
    "blind_agreement": "the same with grey pictures: what the words alone give away",
    "gain": "what the pictures add to the agreement",
    "first_wins": "verdicts for the side that stands first; 0.5 is no position bias",
    "contradictions": "pairs whose two verdicts name different sides",
    "ties": "pairs that are tied in both orders",
    "longer_wins": "verdicts for the longer side, of pairs that have one",
    "longer_is_chosen": "what the labels say of the same pairs",
}
"""Metrics in the order of the tables, shares in 0-1."""

COLUMNS = (
    "pairs",
    "agreed",
    "first_won",
    "contradicted",
    "tied",
    "with_longer",
    "longer_won",
    "longer_chosen",
    "seen_and_blind",
    "seen_agreed",
    "blind_agreed",
)


@dataclass(frozen=True, slots=True)
class BothOrders:
    """The verdicts on one pair: with the chosen side first, and with it second."""

    chosen_first: Verdict
    chosen_second: Verdict

    @property
    def wins(self) -> tuple[float, float]:
        """1, ½ or 0 for the chosen side, by order."""
        second = win_of(self.chosen_second)
        return win_of(self.chosen_first), 1 - second

    @property
    def agreement(self) -> float:
        """1, ½ or 0: right in both orders, undecided, wrong in both."""
        wins = self.wins
        if wins[0] == wins[1]:
            return wins[0]
        return 0.5

    @property
    def contradicts(self) -> bool:
        """Whether the same place wins in both orders."""
        return set(self.wins) == {0.0, 1.0}


class JudgeQuality(BaseModel):
    """What was measured: `metrics` and their 95 % `intervals` by name. What could not be measured is absent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: str
    num_pairs: int
    metrics: dict[str, float] = Field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    dropped: dict[str, int] = Field(default_factory=dict)
    seconds_per_pair: float | None = None
    usage: dict[str, float] = Field(
        default_factory=dict,
        description="replies, tokens and cost of a judge that asks servers",
    )


def measure_judge(
    name: str,
    pairs: Sequence[PreferencePair],
    seen: Mapping[str, BothOrders],
    blind: Mapping[str, BothOrders],
    dropped: Sequence[Dropped],
    num_samples: int,
) -> JudgeQuality:
    """Measure a judge by its verdicts.

    Args:
        name: of the judge.
        pairs: what was judged.
        seen: by pair id; a pair without both verdicts is missing.
        blind: the same with grey pictures, {} when this was not asked.
        dropped: why verdicts are missing.
        num_samples: bootstrap draws. Pairs that share their pictures are redrawn together.
    """
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for pair in pairs:
        if pair.id not in seen:
            continue
        pictures = tuple(ref.sha256 for ref in pair.prompt.images)
        row = rows.setdefault(pictures or (pair.id,), {})
        counts = _counts(pair, seen[pair.id], blind.get(pair.id))
        for column, count in counts.items():
            row[column] = row.get(column, 0.0) + count
    num_pairs = sum(pair.id in seen for pair in pairs)
    reasons = count_reasons(dropped)
    if not rows:
        return JudgeQuality(judge=name, num_pairs=0, dropped=reasons)
    columns = _columns_of(list(rows.values()))
    seed = derive_seed("judge quality")
    metrics = estimate(columns, _statistic)
    bounds = intervals(columns, _statistic, num_samples, seed)
    unmeasured = _unmeasured(columns)
    return JudgeQuality(
        judge=name,
        num_pairs=num_pairs,
        metrics=_without(metrics, unmeasured),
        intervals=_without(bounds, unmeasured),
        dropped=reasons,
    )


def _counts(
    pair: PreferencePair, seen: BothOrders, blind: BothOrders | None
) -> dict[str, float]:
    """What one pair adds to the totals."""
    wins = seen.wins
    counts = {
        "pairs": 1.0,
        "agreed": seen.agreement,
        # The chosen side stands second in the second order.
        "first_won": wins[0] + (1 - wins[1]),
        "contradicted": float(seen.contradicts),
        "tied": float(wins == (0.5, 0.5)),
    }
    longer = _longer_side(pair)
    if longer is not None:
        won = sum(wins) if longer == "chosen" else 2 - sum(wins)
        counts["with_longer"] = 1.0
        counts["longer_won"] = won
        counts["longer_chosen"] = float(longer == "chosen")
    if blind is not None:
        counts["seen_and_blind"] = 1.0
        counts["seen_agreed"] = seen.agreement
        counts["blind_agreed"] = blind.agreement
    return counts


def _longer_side(pair: PreferencePair) -> str | None:
    num_chosen = len(words(pair.chosen.text))
    num_rejected = len(words(pair.rejected.text))
    if num_chosen == num_rejected:
        return None
    return "chosen" if num_chosen > num_rejected else "rejected"


def _columns_of(rows: Sequence[Mapping[str, float]]) -> Columns:
    columns: dict[str, Array] = {}
    for name in COLUMNS:
        columns[name] = np.asarray([row.get(name, 0.0) for row in rows])
    return columns


def _statistic(totals: Columns) -> dict[str, Array]:
    pairs = totals["pairs"]
    verdicts = 2 * pairs
    seen_agreement = ratio(totals["seen_agreed"], totals["seen_and_blind"])
    blind_agreement = ratio(totals["blind_agreed"], totals["seen_and_blind"])
    return {
        "agreement": ratio(totals["agreed"], pairs),
        "first_wins": ratio(totals["first_won"], verdicts),
        "contradictions": ratio(totals["contradicted"], pairs),
        "ties": ratio(totals["tied"], pairs),
        "longer_wins": ratio(totals["longer_won"], 2 * totals["with_longer"]),
        "longer_is_chosen": ratio(totals["longer_chosen"], totals["with_longer"]),
        "blind_agreement": blind_agreement,
        # Over the pairs that were judged both ways.
        "gain": seen_agreement - blind_agreement,
    }


def _unmeasured(columns: Columns) -> set[str]:
    """Metrics whose ratio has nothing below the line."""
    unmeasured: set[str] = set()
    if not columns["with_longer"].any():
        unmeasured |= {"longer_wins", "longer_is_chosen"}
    if not columns["seen_and_blind"].any():
        unmeasured |= {"blind_agreement", "gain"}
    return unmeasured


def _without(values: Mapping[str, T], names: set[str]) -> dict[str, T]:
    kept = dict(values)
    for name in names:
        kept.pop(name, None)
    return kept

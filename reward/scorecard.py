"""The scorecard of one policy: CHAIR, POPE and win rate, each with a 95 % interval, and what it could not count.

The table behind it has one row per scene: a caption, its questions and its comparison with the start policy are
redrawn together. Two scorecards of the same scenes use the same draws.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from common.records import Dropped, RolloutGroup, SideLogps, Verdict
from common.seeding import derive_seed
from common.shapes.language import parse_caption
from common.shapes.questions import POPE_SPLITS
from common.shapes.truth import MissingTruth, answer_of, group_of, is_question, scene_of
from reward.bootstrap import Array, Columns, Statistic, estimate, intervals, ratio
from reward.chair import caption_counts, chair
from reward.grounding import Grounding
from reward.pope import POPE_COUNTS, POPE_METRICS, answer_counts, parse_answer, pope

POPE_AVERAGES = ("accuracy", "f1", "yes_ratio")
"""Metrics whose mean over the splits the scorecard carries."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one policy said, greedily: a group of one completion per prompt, and the prompts without an answer."""

    captions: tuple[RolloutGroup, ...] = ()
    questions: tuple[RolloutGroup, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    grounding: dict[str, dict[str, SideLogps]] = field(default_factory=dict)
    """Of the grounding gate: view -> pair id -> log-probs."""


class Scorecard(BaseModel):
    """Shares are in 0-1, lengths in words. None means that there was nothing to measure.

    `pope_*` are means over the POPE splits, `pope` has every metric of every split. `win_rate` is wins + ½ ties against
    the start policy by the judge, 0.5 for the start policy itself. `selection` (see `reward/chair.py`) picks
    checkpoints on the validation split; it is 0 without captions. `intervals` are 95 % bootstrap intervals by metric
    name, "pope/SPLIT/METRIC" for the splits. `grounding` is filled in on the test split (see `reward/grounding.py`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    chair_s: float | None = None
    chair_i: float | None = None
    recall: float | None = None
    mean_length: float | None = None
    pope_accuracy: float | None = None
    pope_f1: float | None = None
    pope_yes_ratio: float | None = None
    win_rate: float | None = None
    selection: float = 0.0
    pope: dict[str, dict[str, float]] = Field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    num_captions: int = 0
    num_truncated: int = Field(0, description="captions cut off at the token limit")
    num_questions: int = 0
    num_compared: int = Field(0, description="captions judged against the start policy")
    dropped: dict[str, int] = Field(
        default_factory=dict, description="what could not be counted, by reason"
    )
    grounding: Grounding | None = None


def win_of(verdict: Verdict) -> float:
    """1 when the first of two completions is better, 0 when the second is, ½ for a tie."""
    mine, theirs = verdict.scores
    return 0.5 if mine == theirs else float(mine > theirs)


def make_scorecard(
    answers: Answers,
    wins: Mapping[str, float] | None,
    num_samples: int,
    dropped: Sequence[Dropped] = (),
) -> Scorecard:
    """Measure `answers`.

    Args:
        wins: caption prompt id -> 1, ½ or 0 against the start policy; None says that this *is* the start policy.
        num_samples: bootstrap draws.
        dropped: further failures to count, of the judge for example.
    """
    reasons = Counter(drop.reason for drop in (*answers.dropped, *dropped))
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for group in (*answers.captions, *answers.questions):
        try:
            counts = _counts(group)
        except MissingTruth:
            reasons["no_truth"] += 1
        else:
            table[group_of(group.prompt)].update(counts)
    for id, win in (wins or {}).items():
        table[id].update({"half_wins": round(2 * win), "compared": 1})
    columns = _columns(table.values())
    total = {name: int(values.sum()) for name, values in columns.items()}
    seen = {name for name, value in total.items() if value}
    statistic = _statistic(seen)
    values = estimate(columns, statistic)
    bounds = intervals(columns, statistic, num_samples, derive_seed("scorecard"))
    if wins is None:
        values["win_rate"], bounds["win_rate"] = 0.5, (0.5, 0.5)
    splits = {
        split: {name: values.pop(f"pope/{split}/{name}") for name in POPE_METRICS}
        for split in _splits(seen)
    }
    return Scorecard.model_validate(
        {
            **values,
            "pope": splits,
            "intervals": bounds,
            "num_captions": total["captions"],
            "num_truncated": total["truncated"],
            "num_questions": sum(
                total[f"{split}/{name}"]
                for split in POPE_SPLITS
                for name in POPE_COUNTS
            ),
            "num_compared": total["compared"],
            "dropped": dict(reasons),
        }
    )


def _counts(group: RolloutGroup) -> dict[str, int]:
    completion = group.completions[0]
    if is_question(group.prompt):
        true, split = answer_of(group.prompt)
        return {
            f"{split}/{name}": n
            for name, n in answer_counts(parse_answer(completion.text), true).items()
        }
    present = scene_of(group.prompt).shapes
    mentions = [mention.shape for mention in parse_caption(completion.text)]
    counts = caption_counts(mentions, present, len(completion.text.split()))
    return {**counts, "truncated": int(completion.finish_reason == "length")}


def _columns(rows: Collection[Counter[str]]) -> Columns:
    names = [f"{split}/{name}" for split in POPE_SPLITS for name in POPE_COUNTS]
    names += [*caption_counts((), (), 0), "truncated", "half_wins", "compared"]
    return {
        name: np.asarray([row[name] for row in rows], dtype=np.float64)
        for name in names
    }


def _splits(names: Collection[str]) -> list[str]:
    """The POPE splits that were asked about."""
    return [
        split
        for split in POPE_SPLITS
        if any(f"{split}/{name}" in names for name in POPE_COUNTS)
    ]


def _statistic(seen: Collection[str]) -> Statistic:
    """All metrics that there is something to say about; `seen` names the columns that are not all zero."""

    def metrics(totals: Columns) -> dict[str, Array]:
        found: dict[str, Array] = {}
        if "captions" in seen:
            found |= chair(totals)
        splits = {
            s: pope({name: totals[f"{s}/{name}"] for name in POPE_COUNTS})
            for s in _splits(seen)
        }
        for split, values in splits.items():
            found |= {f"pope/{split}/{name}": value for name, value in values.items()}
        if splits:
            for name in POPE_AVERAGES:
                found[f"pope_{name}"] = np.mean(
                    [values[name] for values in splits.values()], axis=0
                )
        if "compared" in seen:
            found["win_rate"] = ratio(totals["half_wins"], 2 * totals["compared"])
        return found

    return metrics

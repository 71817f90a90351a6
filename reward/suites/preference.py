"""Held-out preference pairs: how the policy ranks them, by log-probs alone. Nothing is generated and nothing is judged.

    accuracy       share of pairs whose implicit reward log(policy / start) is higher for chosen than for rejected. A
                   tie counts half, so that the start policy, all of whose rewards are 0, has 0.5
    margin         mean implicit reward of chosen minus that of rejected (nats, β = 1)
    logp_accuracy  share of pairs whose chosen side has the higher log-prob per token, of any policy

The reward of DPO is β · log(policy / start) (arXiv 2305.18290, section 4); β changes no sign. Whether these preferences
rest on the picture is the grounding gate's question: its pairs are these when no suite before this one has any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common import config
from common.data.datasets import read_pairs
from common.data.images import ImageStore
from common.evaluation import (
    Comparison,
    Measurement,
    MetricInfo,
    Split,
    SuiteAnswers,
    TaskPrompts,
)
from common.records import Dropped, PreferencePair, Response, SideLogps
from common.seeding import derive_seed
from reward.suites.base import BaseSuite
from reward.suites.bootstrap import (
    Array,
    Columns,
    columns_of,
    estimate,
    intervals_of,
    ratio,
    resample,
)
from reward.suites.scorecard import described

METRICS = {
    "accuracy": MetricInfo(
        "reward accuracy",
        "higher",
        "pairs ranked right by the implicit reward",
        against_start=True,
    ),
    "margin": MetricInfo(
        "reward margin",
        "higher",
        "implicit reward of chosen over rejected, nats",
        against_start=True,
    ),
    "logp_accuracy": MetricInfo(
        "log-prob accuracy", "higher", "pairs ranked right by log-prob per token"
    ),
}

NOTHING_SCORED = "no pair was scored; the suite's test and validation name their sets"

_COLUMNS = ("pairs", "right_by_logp", "rewarded", "right", "margin")


class PreferenceSuite(BaseSuite):
    """A `common.protocols.Suite` of pair sets that nobody trains on."""

    metrics = METRICS
    selecting_metric = "accuracy"
    unit = "pairs"

    def __init__(self, settings: config.PreferenceSuite) -> None:
        self.name = settings.name
        self._paths: dict[Split, str | None] = {
            "validation": settings.validation,
            "test": settings.test,
        }
        self._limit = settings.limit

    def prompts(
        self,
        split: Split,
        store: ImageStore,
        dropped: list[Dropped],
    ) -> TaskPrompts:
        """None: answers are given."""
        return {}

    def pairs(
        self,
        split: Split,
        store: ImageStore,
        dropped: list[Dropped],
    ) -> Sequence[PreferencePair]:
        """The first pairs of the split's set (UserError when it is none)."""
        path = self._paths[split]
        if path is None:
            return ()
        pairs = read_pairs(Path(path), dropped)[: self._limit]
        return [_as_text(pair) for pair in pairs]

    def measure(
        self,
        answers: SuiteAnswers,
        comparison: Comparison | None,
        num_samples: int,
    ) -> Measurement:
        """See `common.protocols.Suite`. A row is a pair."""
        start: Mapping[str, SideLogps] = {}
        if comparison is not None:
            start = comparison.start.logps
        rows: list[dict[str, float]] = []
        # Sorted, so that equal pairs meet equal draws.
        for pair_id in sorted(answers.logps):
            rows.append(_row(answers.logps[pair_id], start.get(pair_id)))
        columns = columns_of(rows, _COLUMNS)
        values = estimate(columns, _statistic)
        seed = derive_seed("scorecard", self.name)
        resampled = resample(columns, _statistic, num_samples, seed)
        if comparison is None and rows:
            # The start policy's log-ratios to itself are all 0.
            for name, value in (("accuracy", 0.5), ("margin", 0.0)):
                values[name] = value
                resampled[name] = np.full(num_samples, value)
        return Measurement(
            metrics=described(values, intervals_of(resampled), METRICS),
            counts={"num_pairs": len(rows)},
            dropped={},
            summary=f"{len(rows)} held-out pairs; 95 % bootstrap intervals over pairs",
            resampled=resampled,
            missing={} if rows else dict.fromkeys(METRICS, NOTHING_SCORED),
        )


def _as_text(pair: PreferencePair) -> PreferencePair:
    """The pair without token ids: another tokenizer may have made those of a data set."""
    return PreferencePair(
        id=pair.id,
        prompt=pair.prompt,
        chosen=Response(pair.chosen.text),
        rejected=Response(pair.rejected.text),
        source=pair.source,
    )


def _row(policy: SideLogps, start: SideLogps | None) -> dict[str, float]:
    chosen, rejected = policy.both("per_token")
    row: dict[str, float] = {"pairs": 1, "right_by_logp": int(chosen > rejected)}
    if start is not None:
        chosen_reward = policy.chosen - start.chosen
        rejected_reward = policy.rejected - start.rejected
        margin = chosen_reward - rejected_reward
        row["rewarded"] = 1
        row["right"] = (1 + np.sign(margin)) / 2
        row["margin"] = margin
    return row


def _statistic(totals: Columns) -> dict[str, Array]:
    metrics: dict[str, Array] = {}
    # What nothing was measured on is no metric, and not one of 0.
    if totals["pairs"].any():
        metrics["logp_accuracy"] = ratio(totals["right_by_logp"], totals["pairs"])
    if totals["rewarded"].any():
        metrics["accuracy"] = ratio(totals["right"], totals["rewarded"])
        metrics["margin"] = ratio(totals["margin"], totals["rewarded"])
    return metrics

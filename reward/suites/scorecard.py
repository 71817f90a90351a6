"""The scorecard of one policy: what every suite measured, each metric with a 95 % interval, and the grounding gate."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from common.evaluation import Metric, MetricInfo
from reward.suites.changes import Change, Harm
from reward.suites.grounding import Grounding


class SuiteCard(BaseModel):
    """One suite. A metric that could not be measured is absent, never 0; see `common.evaluation.Measurement`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: dict[str, Metric] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict)
    dropped: dict[str, int] = Field(
        default_factory=dict, description="what could not be counted, by reason"
    )
    summary: str = ""
    missing: dict[str, str] = Field(
        default_factory=dict, description="why a metric is absent"
    )
    changes: dict[str, Change] = Field(
        default_factory=dict,
        description="differences from the start policy, of the metrics with a direction",
    )

    def value(self, metric: str) -> float | None:
        """A metric's value, None when it was not measured."""
        measured = self.metrics.get(metric)
        return None if measured is None else measured.value


class Scorecard(BaseModel):
    """All suites by name.

    `grounding` is filled in where the gate was asked for (see `reward/suites/grounding.py`), `harm` where the policy is
    worse than the start policy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suites: dict[str, SuiteCard] = Field(default_factory=dict)
    grounding: Grounding | None = None
    harm: Harm | None = None


def described(
    values: Mapping[str, float],
    bounds: Mapping[str, tuple[float, float]],
    infos: Mapping[str, MetricInfo],
) -> dict[str, Metric]:
    """Metrics with what tables say of them: those of `infos` first, in its order, the others without a label."""
    metrics: dict[str, Metric] = {}
    # The order of the mapping is the order of the tables.
    for name, info in infos.items():
        if name not in values:
            continue
        metrics[name] = Metric(
            value=values[name],
            interval=bounds.get(name),
            label=info.label,
            better=info.better,
            meaning=info.meaning,
            digits=info.digits,
        )
    # Parts of a metric, such as single splits, are for the JSON alone.
    for name, value in values.items():
        if name not in metrics:
            metrics[name] = Metric(value, bounds.get(name))
    return metrics

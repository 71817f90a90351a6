"""What training changed: the difference of every metric from the start policy's, and whether it is harm.

The interval is a paired bootstrap's: both policies answered the same prompts and are resampled with the same draws, so
that what makes a prompt hard for both cancels out. A change is better or worse when its 95 % interval leaves zero out.
Source: Efron, Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from common.evaluation import Measurement, MetricInfo, SuiteAnswers
from common.records import RolloutGroup
from reward.suites.bootstrap import interval


class Change(BaseModel):
    """policy - start of one metric, over the prompts that both answered; `verdict` "" where zero is in the interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    interval: tuple[float, float]
    verdict: Literal["better", "worse", ""]


class Harm(BaseModel):
    """Metrics, as SUITE.METRIC, by which a policy is worse than the start policy beyond the interval.

    `better_policy` is the start policy unless some other metric got better: then neither is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    worse: list[str]
    better: list[str] = Field(default_factory=list)
    better_policy: Literal["start", "neither"]


def common_answers(answers: SuiteAnswers, others: SuiteAnswers) -> SuiteAnswers:
    """The answers to what the other policy answered, too."""
    tasks: dict[str, tuple[RolloutGroup, ...]] = {}
    for task, groups in answers.tasks.items():
        answered: set[str] = set()
        for group in others.tasks.get(task, ()):
            answered.add(group.prompt.id)
        shared = [group for group in groups if group.prompt.id in answered]
        tasks[task] = tuple(shared)
    logps = dict(answers.logps)
    only_here = answers.logps.keys() - others.logps.keys()
    for pair_id in only_here:
        del logps[pair_id]
    return replace(
        answers,
        tasks=tasks,
        logps=logps,
    )


def changes_of(
    policy: Measurement,
    start: Measurement,
    infos: Mapping[str, MetricInfo],
) -> dict[str, Change]:
    """The changes of all metrics that have a direction and that both measurements resampled.

    Both are of the same prompts, so that a draw of the one is the same draw of the other.
    """
    changes: dict[str, Change] = {}
    for name, info in infos.items():
        in_both = name in policy.resampled and name in start.resampled
        if not info.better or not in_both:
            continue
        after = policy.metrics[name].value
        before = start.metrics[name].value
        differences = policy.resampled[name] - start.resampled[name]
        bounds = interval(differences)
        changes[name] = Change(
            value=after - before,
            interval=bounds,
            verdict=_verdict(bounds, info),
        )
    return changes


def _verdict(
    bounds: tuple[float, float],
    info: MetricInfo,
) -> Literal["better", "worse", ""]:
    low, high = bounds
    if low <= 0 <= high:
        return ""
    has_risen = low > 0
    is_better = has_risen == (info.better == "higher")
    return "better" if is_better else "worse"


def harm_of(
    changes: Mapping[str, Mapping[str, Change]],
    selecting: Collection[str],
) -> Harm | None:
    """The harm that changes by suite and metric add up to; None when nothing is worse.

    Args:
        selecting: the metrics, as SUITE.METRIC, that pick a checkpoint. A policy that is worse by one of them is the
            worse policy, whatever else it is better at.
    """
    names: dict[str, list[str]] = {"better": [], "worse": []}
    for suite, by_metric in changes.items():
        for metric, change in by_metric.items():
            if change.verdict:
                names[change.verdict].append(f"{suite}.{metric}")
    worse = names["worse"]
    if not worse:
        return None
    fails_its_aim = any(name in selecting for name in worse)
    is_mixed = bool(names["better"]) and not fails_its_aim
    return Harm(
        worse=worse,
        better=names["better"],
        better_policy="neither" if is_mixed else "start",
    )

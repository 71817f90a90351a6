"""From a suite's measurements to its card: metrics, what was lost, why metrics are absent, and changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from common.evaluation import (
    Comparison,
    Measurement,
    SuiteAnswers,
    count_reasons,
)
from common.protocols import Suite
from common.records import Dropped, Verdict
from common.row_faults import drop_report
from reward.suites.changes import Change, changes_of, common_answers
from reward.suites.scorecard import SuiteCard


def suite_card(
    suite: Suite,
    answers: SuiteAnswers,
    comparison: Comparison | None,
    lost: Sequence[Dropped],
    num_samples: int,
) -> SuiteCard:
    """One policy's card.

    Args:
        comparison: with the start policy; None when this is the start policy.
        lost: rows, answers and comparisons; the suite adds what it could not count itself.
        num_samples: bootstrap draws.
    """
    measurement = suite.measure(answers, comparison, num_samples)
    dropped = Counter(count_reasons(lost))
    dropped.update(measurement.dropped)
    changes: dict[str, Change] = {}
    if comparison is not None:
        changes = _changes(suite, answers, comparison, num_samples)
    return SuiteCard(
        metrics=dict(measurement.metrics),
        counts=dict(measurement.counts),
        dropped=dict(dropped),
        summary=measurement.summary,
        missing=_missing(suite, measurement, comparison, lost),
        changes=changes,
    )


def beside_itself(
    card: SuiteCard,
    suite: Suite,
    answers: SuiteAnswers,
    verdicts: Mapping[str, Verdict],
    num_samples: int,
) -> SuiteCard:
    """The start policy's card with what a judge said of its answers beside another policy's.

    Args:
        verdicts: of (the other policy's answer, the start policy's).
    """
    comparison = Comparison(answers, _of_start(verdicts))
    measurement = suite.measure(answers, comparison, num_samples)
    update = {
        "metrics": dict(measurement.metrics),
        "missing": _missing(suite, measurement, comparison, ()),
    }
    return card.model_copy(update=update)


def _changes(
    suite: Suite,
    answers: SuiteAnswers,
    comparison: Comparison,
    num_samples: int,
) -> dict[str, Change]:
    """The differences from the start policy, over what both policies answered."""
    ours = common_answers(answers, comparison.start)
    theirs = common_answers(comparison.start, answers)
    of_policy = replace(comparison, start=theirs)
    of_start = Comparison(theirs, _of_start(comparison.verdicts))
    policy = suite.measure(ours, of_policy, num_samples)
    start = suite.measure(theirs, of_start, num_samples)
    return changes_of(policy, start, suite.metrics)


def _of_start(verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """The verdicts of a policy beside the start policy as those of the start policy beside itself: ties."""
    of_start: dict[str, Verdict] = {}
    for prompt_id, verdict in verdicts.items():
        _, score = verdict.scores
        of_start[prompt_id] = Verdict((score, score))
    return of_start


def _missing(
    suite: Suite,
    measurement: Measurement,
    comparison: Comparison | None,
    lost: Sequence[Dropped],
) -> dict[str, str]:
    """Why metrics of the suite are absent: its own reasons, and what its comparison lacked."""
    missing = dict(measurement.missing)
    reason = "nothing was there to be compared"
    if comparison is None:
        reason = "there is no start policy to compare with"
    elif lost:
        reason = f"nothing could be compared; dropped {drop_report(lost)}"
    for name, info in suite.metrics.items():
        is_absent = name not in measurement.metrics
        if info.against_start and is_absent:
            missing.setdefault(name, reason)
    return missing

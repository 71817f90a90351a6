"""What a run came to, in two sentences: what changed, and where to look."""

from __future__ import annotations

from cluster.evaluation.finished_run import FinishedRun
from reward.suites.scorecard import Scorecard, SuiteCard

SHOWN = 3
"""Metrics of a kind that are named; the table above has all."""


def summary(run: FinishedRun) -> str:
    """Both sentences, for a terminal."""
    # Every step has a staleness.
    trained = f"{len(run.curve('staleness/mean')):,} steps"
    pairs = [count for _, count in run.curve("pairs/trained")]
    if pairs:
        trained += f" on {sum(pairs):,.0f} pairs"
    changed = _changed(run.start, run.final)
    look = f"python -m cluster.report {run.path} --serve"
    return (
        f"After {trained} {changed}.\n"
        f"Look at all of it with `{look}`; the policy is in {run.path / 'policy'}, which transformers and vLLM "
        "load."
    )


def _changed(start: Scorecard, final: Scorecard) -> str:
    """The metrics whose paired interval leaves zero out."""
    by_verdict: dict[str, list[str]] = {"better": [], "worse": []}
    for suite, card in final.suites.items():
        before = start.suites.get(suite, SuiteCard())
        for name, change in card.changes.items():
            if change.verdict:
                by_verdict[change.verdict].append(_told(name, before, card))
    if not final.suites:
        return "nothing was measured, since evaluation.suites is empty"
    parts: list[str] = []
    for verdict, metrics in by_verdict.items():
        if metrics:
            more = len(metrics) - SHOWN
            others = f" and {more} more" if more > 0 else ""
            parts.append(f"{verdict} by {', '.join(metrics[:SHOWN])}{others}")
    if not parts:
        return "no metric has changed by more than its interval"
    return f"the policy is {'; '.join(parts)}"


def _told(name: str, before: SuiteCard, after: SuiteCard) -> str:
    """`CHAIR_i 0.240 → 0.009`."""
    metric = after.metrics[name]
    label = metric.label or name
    value = before.value(name)
    if value is None:
        return f"{label} {metric.value:.{metric.digits}f}"
    return f"{label} {value:.{metric.digits}f} → {metric.value:.{metric.digits}f}"

"""What a run came to, in two sentences: what changed, and where to look."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.evaluation.finished_run import FinishedRun, Points
from reward.suites.scorecard import Scorecard, SuiteCard

TRAINED = "pairs/trained"
"""The metric that says how many pairs a step was of."""
SHOWN = 3
"""Metrics of a kind that are named; the table above has all."""


def summary(run: FinishedRun) -> str:
    """Both sentences, for a terminal."""
    trained = run.curve(TRAINED)
    changed = what_changed(run.start, run.final, run.steps(), trained, run.picked())
    look = f"python -m cluster.report {run.path} --serve"
    return (
        f"{changed}\n"
        f"Look at all of it with `{look}`; the policy is in {run.path / 'policy'}, which transformers and vLLM "
        "load."
    )


def what_changed(
    start: Scorecard,
    final: Scorecard,
    steps: Sequence[int],
    trained: Points,
    picked: int | None,
) -> str:
    """The first sentence, of the policy that was measured.

    Args:
        steps: all steps of the run.
        trained: `TRAINED` of the steps that have it.
        picked: the step whose checkpoint became the policy; None for the last one.
    """
    counted = [step for step in steps if picked is None or step <= picked]
    num_pairs = sum(count for step, count in trained if step in set(counted))
    is_earlier = len(counted) < len(steps)
    after = f"{len(counted):,}"
    if is_earlier:
        after += f" of {len(steps):,}"
    after += " steps"
    if num_pairs:
        after += f" on {num_pairs:,.0f} pairs"
    if is_earlier:
        after += ", which validation picked,"
    return f"After {after} {_changed(start, final)}."


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

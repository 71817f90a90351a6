"""Finished runs side by side: scorecards, what differs in their configs, and their curves on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase

from markupsafe import Markup

from cluster.evaluation.drawing import axes_of
from cluster.evaluation.finished_run import FinishedRun, Points
from cluster.evaluation.score_table import grounding_lines, metric_rows, suite_names
from cluster.pages import template
from common.command_line.flat import flattened
from common.errors import UserError
from common.paths import replace_file
from reward.suites.scorecard import Scorecard

MAX_RUNS = 12
"""More columns than that nobody reads."""

CURVES = {
    "rewards/margins": "Margin of the implicit rewards (β · nats)",
    "rewards/accuracies": "Pairs whose chosen side has the higher implicit reward",
    "logps/chosen": "Log-prob of the chosen side (nats)",
    "loss": "Loss",
    "staleness/mean": "Mean staleness (versions)",
    "time/wait_s": "Seconds that the learner waited for pairs",
    "time/input_s": "Seconds of a step in which the learner made its batch of pairs",
}
"""Metrics of `metrics.jsonl` that are drawn, in this order."""

VALIDATION = "Validation score that picks the checkpoint"
NOT_COMPARED = {"run.dir"}
"""Differs between any two runs."""


def labels_of(runs: Sequence[FinishedRun]) -> list[str]:
    """`A name`, `B name`, …: a letter, because two runs may have folders of one name.

    Raises:
        UserError: there are more runs than a person can compare.
    """
    if len(runs) > MAX_RUNS:
        raise UserError(
            f"RUN_DIR: expected at most {MAX_RUNS} runs, got {len(runs)}; compare fewer"
        )
    labels: list[str] = []
    for letter, run in zip(ascii_uppercase, runs, strict=False):
        labels.append(f"{letter} {run.path.resolve().name}")
    return labels


def compared_cards(runs: Sequence[FinishedRun]) -> dict[str, Scorecard]:
    """The start policy's card, once where all runs measured the same, and the final card of every run."""
    labels = labels_of(runs)
    cards: dict[str, Scorecard] = {}
    if all(run.start == runs[0].start for run in runs):
        cards["start"] = runs[0].start
    else:
        for label, run in zip(labels, runs, strict=True):
            cards[f"{label} start"] = run.start
    for label, run in zip(labels, runs, strict=True):
        cards[label] = run.final
    return cards


def config_differences(runs: Sequence[FinishedRun]) -> dict[str, list[str]]:
    """Config key -> its value in every run, for the keys that differ; "–" where a run has no such key."""
    flat = [flattened(run.config) for run in runs]
    keys: dict[str, None] = {}
    for settings in flat:
        keys.update(dict.fromkeys(settings))
    differences: dict[str, list[str]] = {}
    for key in keys:
        values = [settings.get(key, "–") for settings in flat]
        if len(set(values)) > 1 and key not in NOT_COMPARED:
            differences[key] = values
    return differences


def write_comparison(path: Path, runs: Sequence[FinishedRun]) -> None:
    """Write the page: one self-contained HTML file."""
    cards = compared_cards(runs)
    suites = [
        (name, metric_rows(list(cards.values()), name))
        for name in suite_names(list(cards.values()))
    ]
    grounding: list[tuple[str, str, bool]] = []
    for label, card in cards.items():
        for line, is_warning in grounding_lines(card):
            grounding.append((label, line, is_warning))
    html = template("comparison.html.j2").render(
        labels=labels_of(runs),
        folders=list(zip(labels_of(runs), [run.path for run in runs], strict=True)),
        policies=list(cards),
        suites=suites,
        grounding=grounding,
        differences=config_differences(runs),
        curves=[(caption, Markup(svg)) for caption, svg in curves(runs)],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, html)


def curves(runs: Sequence[FinishedRun]) -> list[tuple[str, str]]:
    """(caption, SVG) of every curve that any run has; the runs are called by their letters."""
    drawings: list[tuple[str, str]] = []
    validation = [run.validation() for run in runs]
    if any(validation):
        drawings.append((VALIDATION, _drawn("validation", validation)))
    for metric, caption in CURVES.items():
        curve_of_runs = [run.curve(metric) for run in runs]
        if any(curve_of_runs):
            drawings.append((caption, _drawn(metric, curve_of_runs)))
    return drawings


def _drawn(name: str, curve_of_runs: Sequence[Points]) -> str:
    with axes_of(name, "learner step", "") as (axes, svg):
        for letter, points in zip(ascii_uppercase, curve_of_runs, strict=False):
            if not points:
                continue
            steps = [step for step, _ in points]
            values = [value for _, value in points]
            axes.plot(steps, values, label=letter, linewidth=1.2, marker=".", ms=3)
        axes.legend(frameon=False)
    return svg[0]

"""docs/paper_table.md and .svg from the JSON of `benchmarks.paper_table`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

METRICS = (
    ("chair_s", "CHAIR_s ↓"),
    ("chair_i", "CHAIR_i ↓"),
    ("recall", "recall ↑"),
    ("mean_length", "words"),
    ("pope_accuracy", "POPE acc. ↑"),
    ("pope_f1", "POPE F1 ↑"),
    ("pope_yes_ratio", "yes ratio"),
    ("win_rate", "win rate ↑"),
)


def write_page(result: Mapping[str, Any], out: Path) -> None:
    """Write both files into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "paper_table.md").write_text(table(result))
    plot(result, out / "paper_table.svg")


def table(result: Mapping[str, Any]) -> str:
    """A Markdown page: mean over seeds and, in brackets, the lowest and the highest seed."""
    names = [title for _, title in METRICS]
    lines = [
        "# Offline, online and mixed alignment on the shapes world",
        "",
        f"`python -m benchmarks.paper_table`: {result['steps']} learner steps of each method from the same policy, "
        f"{result['scenes']} test scenes, seeds {', '.join(map(str, result['seeds']))}. Mean over seeds, in brackets "
        "the lowest and the highest seed; the 95 % bootstrap interval over scenes is in the baseline's row, and of "
        "every run in `benchmarks/results/paper_table.json`. Win rate: by the oracle judge against the start policy.",
        "",
        f"| method | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    baseline = result["baseline"]
    cells = [
        cell([baseline[key]], baseline["intervals"].get(key)) for key, _ in METRICS
    ]
    lines.append(f"| start policy | {' | '.join(cells)} |")
    for arm in result["arms"].values():
        cells = [cell([seed[key] for seed in arm["seeds"]]) for key, _ in METRICS]
        lines.append(f"| {arm['title'].replace('|', '/')} | {' | '.join(cells)} |")
    if result["not_run"]:
        lines += ["", f"Not run here: {'; '.join(result['not_run'])}."]
    return "\n".join([*lines, "", "![CHAIR_i of each method](paper_table.svg)", ""])


def cell(values: Sequence[float], interval: Sequence[float] | None = None) -> str:
    """ "0.123 (0.100 – 0.150)"; three digits, one for lengths."""
    digits = 1 if max(values) > 2 else 3
    low, high = interval or (min(values), max(values))
    text = f"{mean(values):.{digits}f}"
    return text if low == high else f"{text} ({low:.{digits}f} – {high:.{digits}f})"


def plot(result: Mapping[str, Any], path: Path) -> None:
    """CHAIR_i of every seed as dots, their mean as a bar, and the start policy as a line."""
    from matplotlib.figure import Figure

    arms = list(result["arms"].values())[::-1]
    figure = Figure(figsize=(9, 0.42 * len(arms) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for axis, key, title in (
        (left, "chair_i", "CHAIR_i on test scenes (lower is better)"),
        (right, "recall", "recall"),
    ):
        for place, arm in enumerate(arms):
            values = [seed[key] for seed in arm["seeds"]]
            axis.barh(place, mean(values), color="#9ecae1", height=0.6)
            axis.plot(values, [place] * len(values), "o", color="#08519c", markersize=4)
        axis.axvline(
            result["baseline"][key],
            color="#d94801",
            linestyle="--",
            label="start policy",
        )
        axis.set_title(title, fontsize=10)
    left.set_yticks(range(len(arms)), [arm["title"] for arm in arms], fontsize=8)
    left.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})

"""docs/paper_table.md and .svg, or those of another world, from the JSON of `benchmarks.paper_table`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.paper_arms import WORLDS, Metrics

MARKS = {"better": "+", "worse": "-", "": ""}
"""Of a seed's verdict."""


def write_page(result: Mapping[str, Any], out: Path) -> None:
    """Write the table and the plot into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    name = page_name(result["world"])
    (out / f"{name}.md").write_text(table(result))
    plot(result, out / f"{name}.svg")


def page_name(world: str) -> str:
    """Of a world's files."""
    return "paper_table" if world == "shapes" else f"paper_table_{world}"


def table(result: Mapping[str, Any]) -> str:
    """A Markdown page: mean over seeds and, in brackets, the lowest and the highest seed."""
    seeds = ", ".join(str(seed) for seed in result["seeds"])
    world = result["world"]
    metrics = WORLDS[world].metrics
    names = [title for _, title in metrics]
    lines = [
        f"# Offline, online and mixed alignment on the {world} world",
        "",
        intro(result, seeds),
        "",
        row("method", names),
        f"|---|{'---|' * len(names)}",
        row("start policy", baseline_cells(result["baseline"], metrics)),
    ]
    for arm in result["arms"].values():
        # A bar would end the cell.
        title = arm["title"].replace("|", "/")
        lines.append(row(title, seed_cells(arm, metrics)))
    if result["not_run"]:
        titles = "; ".join(result["not_run"])
        lines += ["", f"Not run here: {titles}."]
    lines += ["", f"![CHAIR_i of each method]({page_name(world)}.svg)", ""]
    return "\n".join(lines)


def intro(result: Mapping[str, Any], seeds: str) -> str:
    """The paragraph above the table."""
    world = result["world"]
    options = "" if world == "shapes" else f" --world {world}"
    for name in ("steps", "pairs"):
        options += f" --{name} {result[name]}"
    return (
        f"`python -m benchmarks.paper_table{options}`: {result['steps']} learner steps of each "
        f"method from the same policy, {result['scenes']} test scenes, seeds {seeds}. "
        "Mean over seeds, in brackets the lowest and the highest seed; the 95 % "
        "bootstrap interval over scenes is in the baseline's row, and of every run in "
        f"`benchmarks/results/{page_name(world)}.json`. Win rate: by the oracle judge against "
        "the start policy. A + or - for every seed that is better or worse than the start policy "
        "by its paired 95 % interval."
    )


def row(name: str, cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return f"| {name} | {' | '.join(cells)} |"


def baseline_cells(baseline: Mapping[str, Any], metrics: Metrics) -> list[str]:
    """The start policy's figures with their intervals over scenes."""
    cells = []
    for key, _ in metrics:
        interval = baseline["intervals"].get(key)
        cells.append(cell([baseline[key]], interval))
    return cells


def seed_cells(arm: Mapping[str, Any], metrics: Metrics) -> list[str]:
    """A method's figures over its seeds, with a mark for every seed that is better or worse than the start policy."""
    cells = []
    for key, _ in metrics:
        values = [seed[key] for seed in arm["seeds"]]
        marks = "".join(MARKS[seed.get(key, "")] for seed in arm["verdicts"])
        cells.append(f"{cell(values)} {marks}".rstrip())
    return cells


def cell(values: Sequence[float], interval: Sequence[float] | None = None) -> str:
    """Format a mean with its range, "0.123 (0.100 – 0.150)": three digits, one for lengths."""
    # Lengths are the only figures above 1.
    digits = 1 if max(values) > 2 else 3
    low, high = interval or (min(values), max(values))
    text = f"{mean(values):.{digits}f}"
    if low == high:
        return text
    return f"{text} ({low:.{digits}f} – {high:.{digits}f})"


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw CHAIR_i and recall: every seed as a dot, their mean as a bar, the start policy as a line."""
    from matplotlib.figure import Figure

    # The first method of the table at the top.
    arms = list(result["arms"].values())[::-1]
    titles = [arm["title"] for arm in arms]
    figure = Figure(figsize=(9, 0.42 * len(arms) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    draw_metric(left, result["baseline"], arms, "chair_i")
    draw_metric(right, result["baseline"], arms, "recall")
    left.set_title("CHAIR_i on test scenes (lower is better)", fontsize=10)
    right.set_title("recall", fontsize=10)
    left.set_yticks(range(len(arms)), titles, fontsize=8)
    left.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def draw_metric(
    axis: Any,
    baseline: Mapping[str, Any],
    arms: Sequence[Mapping[str, Any]],
    key: str,
) -> None:
    """Draw one figure of all methods as horizontal bars."""
    for place, arm in enumerate(arms):
        values = [seed[key] for seed in arm["seeds"]]
        axis.barh(place, mean(values), color="#9ecae1", height=0.6)
        axis.plot(
            values,
            [place] * len(values),
            "o",
            color="#08519c",
            markersize=4,
        )
    axis.axvline(
        baseline[key],
        color="#d94801",
        linestyle="--",
        label="start policy",
    )

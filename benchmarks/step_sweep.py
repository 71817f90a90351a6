"""How a step's cost grows: `python -m benchmarks.learner_step --sweep docs/learner_step.svg`, about 10 minutes.

Pairs per second of ours (fresh) and of TRL against the prompt's tokens with one pair per prompt, and against the
number of completions of one prompt, k completions being k / 2 pairs. One counted step per point.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.step_model import SIZES, build

PROMPT_TOKENS = (64, 256, 1024, 4096)
COMPLETIONS = (2, 4, 8, 16)
PROMPT_OF_COMPLETIONS = 640
SIDES = ("peer", "fresh")
Rates = dict[str, dict[str, list[tuple[int, float]]]]
"""Axis -> side -> (value, pairs per second)."""
LABELS = {"peer": "TRL DPOTrainer", "fresh": "sightline"}


def sweep(
    args: argparse.Namespace,
    run_side: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    """Measure every point and draw them; `ratio` is ours over TRL's where it is smallest."""
    rates: Rates = {}
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        model = Path(folder) / "model"
        images = Path(folder) / "images"
        build(SIZES[args.size], model, args.dtype)
        for axis, settings in _points().items():
            rates[axis] = {side: [] for side in SIDES}
            for value, changes in settings:
                point_args = _arguments_of(args, changes)
                for side in SIDES:
                    # The side prints the rest of the line.
                    print(f"{axis} {value}", end="  ")
                    figures = run_side(point_args, side, model, images)
                    rates[axis][side].append((value, figures["pairs_per_s"]))
    _draw(rates, Path(args.sweep))
    return {
        "benchmark": "learner_step_sweep",
        "ratio": round(_smallest_ratio(rates), 2),
        "pairs_per_s": rates,
        "size": args.size,
        "threads": args.threads,
        "figure": args.sweep,
    }


def _arguments_of(
    args: argparse.Namespace,
    changes: dict[str, int],
) -> argparse.Namespace:
    """The arguments of one point: a single pair and step unless `changes` say otherwise, in one forward."""
    point_args = copy.copy(args)
    settings = {"batch": 1, "steps": 1, **changes}
    vars(point_args).update(settings)
    point_args.micro_batch = point_args.batch
    return point_args


def _smallest_ratio(rates: Rates) -> float:
    ratios = []
    for sides in rates.values():
        for (_, theirs), (_, ours) in zip(sides["peer"], sides["fresh"], strict=True):
            ratios.append(ours / theirs)
    return min(ratios)


def _points() -> dict[str, list[tuple[int, dict[str, int]]]]:
    """Axis -> its values, each with the arguments that it stands for."""
    prompt_tokens: list[tuple[int, dict[str, int]]] = []
    for num_tokens in PROMPT_TOKENS:
        settings = {"prompt_tokens": num_tokens}
        prompt_tokens.append((num_tokens, settings))
    completions: list[tuple[int, dict[str, int]]] = []
    for num_completions in COMPLETIONS:
        num_pairs = num_completions // 2
        settings = {
            "prompt_tokens": PROMPT_OF_COMPLETIONS,
            "batch": num_pairs,
            "pairs_per_prompt": num_pairs,
        }
        completions.append((num_completions, settings))
    return {"prompt_tokens": prompt_tokens, "completions": completions}


def _draw(rates: Rates, path: Path) -> None:
    """Two log-log plots side by side, one per axis."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1,
        len(rates),
        figsize=(9, 3.4),
        sharey=True,
        layout="constrained",
    )
    for axis, (name, sides) in zip(axes, rates.items(), strict=True):
        for side, points in sides.items():
            ticks = [value for value, _ in points]
            heights = [rate for _, rate in points]
            axis.plot(ticks, heights, marker="o", label=LABELS[side])
        axis.set(xscale="log", yscale="log", xlabel=name.replace("_", " "))
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("pairs per second")
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})

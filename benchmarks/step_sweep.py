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
        model, images = Path(folder) / "model", Path(folder) / "images"
        build(SIZES[args.size], model, args.dtype)
        for axis, settings in _points().items():
            rates[axis] = {side: [] for side in SIDES}
            for value, changes in settings:
                point_args = copy.copy(args)
                vars(point_args).update({"batch": 1, "steps": 1, **changes})
                point_args.micro_batch = point_args.batch
                for side in SIDES:
                    print(f"{axis} {value}", end="  ")
                    figures = run_side(point_args, side, model, images)
                    rates[axis][side].append((value, figures["pairs_per_s"]))
    _draw(rates, Path(args.sweep))
    ratios = []
    for sides in rates.values():
        for (_, theirs), (_, ours) in zip(sides["peer"], sides["fresh"], strict=True):
            ratios.append(ours / theirs)
    return {
        "benchmark": "learner_step_sweep",
        "ratio": round(min(ratios), 2),
        "pairs_per_s": rates,
        "size": args.size,
        "threads": args.threads,
        "figure": args.sweep,
    }


def _points() -> dict[str, list[tuple[int, dict[str, int]]]]:
    """Axis -> its values, each with the arguments that it stands for."""
    prompt_tokens = [(tokens, {"prompt_tokens": tokens}) for tokens in PROMPT_TOKENS]
    completions: list[tuple[int, dict[str, int]]] = []
    for num in COMPLETIONS:
        settings = {
            "prompt_tokens": PROMPT_OF_COMPLETIONS,
            "batch": num // 2,
            "pairs_per_prompt": num // 2,
        }
        completions.append((num, settings))
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

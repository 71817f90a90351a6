"""What the controller costs per pair, and from how many engines on it is the bottleneck.

    python -m benchmarks.controller_scale --engines 1 16 256

The real loop with its journal, pairs and checkpoints runs engines, judges and a learner that are simulated at given
speeds. `controller_ms` is the controller's CPU time per trained pair, `of_ideal` the trained pairs per second over what
the slowest role alone could give, `growth_mb` the memory that was taken between half of the run and its end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.config import RunConfig

GROUPS_PER_CALL = 8
TIE_SHARE = 0.5
CALLS_IN_FLIGHT = 2


def run_config(
    folder: Path, num_engines: int, arguments: argparse.Namespace
) -> RunConfig:
    """A run of the loop with so many engines, whose batch grows with them."""
    from common.config.overrides import load_config

    batch = arguments.pairs_per_engine * num_engines
    num_steps = arguments.steps
    settings = {
        "run.dir": folder / "run",
        "mixture.online_fraction": 1,
        "rollout.num_workers": num_engines,
        "rollout.prompts_per_call": GROUPS_PER_CALL,
        "reward.num_workers": num_engines,
        "learner.num_steps": num_steps,
        "learner.global_batch": batch,
        "loop.max_staleness": arguments.staleness,
        "checkpoint.interval": max(1, num_steps // 4),
    }
    return load_config(None, [f"--{key}={value}" for key, value in settings.items()])


def ideal_rate(config: RunConfig, arguments: argparse.Namespace) -> float:
    """Pairs per second of the slowest role alone."""
    num_groups = CALLS_IN_FLIGHT * GROUPS_PER_CALL * config.rollout.num_workers
    sampled = num_groups / arguments.call_s * (1 - TIE_SHARE)
    trained = config.learner.global_batch / (arguments.step_s + arguments.push_s)
    return float(min(sampled, trained))


class Meter:
    """CPU seconds of this process and its resident memory, at every checkpoint."""

    def __init__(self) -> None:
        self.rss_mb: list[float] = []

    async def validate(self, step: int) -> None:
        """Called in the place of a validation."""
        self.rss_mb.append(resident_mb())


def resident_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(num_engines: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run."""
    from benchmarks.simulated_workers import (
        SimulatedEngine,
        SimulatedHandle,
        SimulatedJudge,
        SimulatedLearner,
    )
    from cluster.run.loop import Loop
    from cluster.run.recorder import Recorder
    from cluster.run.run_dir import RunDir
    from cluster.run.training_data import TrainingData
    from cluster.runtime.clients import (
        LearnerClient,
        RewardClient,
        RolloutClient,
        Workers,
    )
    from common.shapes.prompts import caption_prompts

    with tempfile.TemporaryDirectory(prefix="sightline-scale-") as name:
        folder = Path(name)
        config = run_config(folder, num_engines, arguments)
        engines = []
        judges = []
        for _ in range(num_engines):
            engines.append(SimulatedHandle(SimulatedEngine(arguments.call_s)))
            judges.append(SimulatedHandle(SimulatedJudge(arguments.judge_s, TIE_SHARE)))
        learner = SimulatedHandle(SimulatedLearner(arguments.step_s, arguments.push_s))
        workers = Workers(
            [RolloutClient(engine, 600) for engine in engines],
            [RewardClient(judge, 600) for judge in judges],
            LearnerClient([learner], 600),
        )
        meter = Meter()
        with RunDir(config, resume=False) as run_dir:
            recorder = Recorder(run_dir.path)
            prompts = caption_prompts("train", 2000, 0, recorder.pairs.store)
            loop = Loop(config, run_dir, workers, TrainingData(prompts, ()), recorder)
            cpu_before = time.process_time()
            begin = time.monotonic()
            with recorder.training(config.learner, 0):
                asyncio.run(loop.run(meter.validate))
            wall_s = time.monotonic() - begin
            cpu_s = time.process_time() - cpu_before
    simulated_s = sum(handle.cpu_s for handle in (*engines, *judges, learner))
    num_pairs = config.learner.num_steps * config.learner.global_batch
    rate = num_pairs / wall_s
    return {
        "engines": num_engines,
        "pairs": num_pairs,
        "global_batch": config.learner.global_batch,
        "controller_ms": round(1e3 * (cpu_s - simulated_s) / num_pairs, 3),
        "pairs_per_s": round(rate, 1),
        "of_ideal": round(rate / ideal_rate(config, arguments), 3),
        "growth_mb": round(meter.rss_mb[-1] - meter.rss_mb[len(meter.rss_mb) // 2], 1),
        "rss_mb": round(meter.rss_mb[-1], 1),
        "dropped": dict(loop.state.drops),
    }


def main() -> None:
    """Prints one JSON object as its last line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.controller_scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument(
        "--steps",
        type=int,
        default=60,
        help="of the learner; the last one waits for pairs in the place of ties, so short runs look slower",
    )
    parser.add_argument(
        "--pairs-per-engine", type=int, default=8, help="of a learner step"
    )
    parser.add_argument(
        "--call-s", type=float, default=2.0, help="seconds of one call of an engine"
    )
    parser.add_argument("--judge-s", type=float, default=0.2)
    parser.add_argument("--step-s", type=float, default=1.0)
    parser.add_argument("--push-s", type=float, default=0.2)
    parser.add_argument("--staleness", type=int, default=2)
    arguments = parser.parse_args()
    runs = []
    for num_engines in arguments.engines:
        runs.append(measure(num_engines, arguments))
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"benchmark": "controller_scale", "runs": runs}))


if __name__ == "__main__":
    main()

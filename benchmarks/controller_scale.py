"""What the controller costs per pair, and from how many engines on it is the bottleneck.

    python -m benchmarks.controller_scale --engines 1 8 64 256

The real loop with its journal, pairs and checkpoints runs engines, judges and a learner that are simulated at given
speeds, on a simulated clock (`benchmarks/simulated_clock.py`).

    controller_ms     the controller's CPU time per trained pair; of every quarter of the run: what grows, shows there
    of_ideal          trained pairs per second over what the slowest role alone could give, in the middle 80 % of the
                      steps: the last steps wait for pairs in the place of ties
    rss_mb, state_kb  resident memory and size of state.json at the end of every quarter
    staleness         share of the pairs by their age in weight versions
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measured_on import measured_on

if TYPE_CHECKING:
    from benchmarks.simulated_workers import SimulatedHandle, SimulatedLearner
    from cluster.runtime.clients import Workers
    from common.config import RunConfig
    from common.data.images import ImageStore
    from common.data.records_on_disk import RecordsOnDisk
    from common.records import Prompt

GROUPS_PER_CALL = 8
TIE_SHARE = 0.5
CALLS_IN_FLIGHT = 2
QUARTERS = 4


def run_config(
    folder: Path, num_engines: int, arguments: argparse.Namespace
) -> RunConfig:
    """A run of the loop with so many engines, whose batch grows with them."""
    from common.config.overrides import load_config

    batch = arguments.pairs_per_engine * num_engines
    settings = {
        "run.dir": folder / "run",
        "mixture.online_fraction": 1,
        "rollout.num_workers": num_engines,
        "rollout.prompts_per_call": GROUPS_PER_CALL,
        "reward.num_workers": num_engines,
        "learner.num_steps": max(20, arguments.pairs // batch),
        "learner.global_batch": batch,
        "loop.max_staleness": arguments.staleness,
        # The one whose manifest and tensors are two references.
        "weights.transport": "object_store",
        "checkpoint.interval": arguments.checkpoint_interval,
    }
    return load_config(None, [f"--{key}={value}" for key, value in settings.items()])


def ideal_rate(config: RunConfig, arguments: argparse.Namespace) -> float:
    """Pairs per second of the slowest role alone."""
    num_groups = CALLS_IN_FLIGHT * GROUPS_PER_CALL * config.rollout.num_workers
    sampled = num_groups / arguments.call_s * (1 - TIE_SHARE)
    trained = config.learner.global_batch / (arguments.step_s + arguments.push_s)
    return float(min(sampled, trained))


def simulated_prompts(count: int, store: ImageStore) -> RecordsOnDisk[Prompt]:
    """So many prompts about one picture, made when they are asked for."""
    from dataclasses import replace

    import numpy as np

    from common.data.records_on_disk import RecordsOnDisk, id_key
    from common.shapes.prompts import caption_prompts

    (prompt,) = caption_prompts("train", 1, 0, store)

    def read(number: int) -> Prompt:
        return replace(prompt, id=f"simulated/{number:07}")

    numbers = np.arange(count)
    keys = np.array([id_key(f"simulated/{number:07}") for number in range(count)])
    return RecordsOnDisk(read, numbers, keys)


@dataclass(slots=True)
class Meter:
    """What the controller has used so far, noted at every quarter of the run.

    Attributes:
        handles: of the simulated workers, whose CPU time is not the controller's.
    """

    run_dir: Path
    num_steps: int
    handles: Sequence[SimulatedHandle]
    controller_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    state_kb: list[float] = field(default_factory=list)

    async def validate(self, step: int) -> None:
        """Called in the place of a validation."""
        # The first note is from before the run, the last one from behind it.
        num_quarters = len(self.rss_mb)
        if num_quarters < QUARTERS and step * QUARTERS >= self.num_steps * num_quarters:
            self.note()

    def note(self) -> None:
        """Note the present."""
        workers_s = sum(handle.cpu_s for handle in self.handles)
        self.controller_s.append(time.process_time() - workers_s)
        self.rss_mb.append(round(resident_mb(), 1))
        states = sorted(self.run_dir.glob("checkpoints/step_*/state.json"))
        size = states[-1].stat().st_size if states else 0
        self.state_kb.append(round(size / 1e3, 1))


def resident_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def simulated_workers(
    num_engines: int, learner: SimulatedLearner, arguments: argparse.Namespace
) -> tuple[Workers, list[SimulatedHandle]]:
    """As many judges as engines; all workers, and all their handles."""
    from benchmarks.simulated_workers import (
        SimulatedEngine,
        SimulatedHandle,
        SimulatedJudge,
    )
    from cluster.runtime.clients import (
        LearnerClient,
        RewardClient,
        RolloutClient,
        Workers,
    )

    engines = []
    judges = []
    for _ in range(num_engines):
        engines.append(SimulatedHandle(SimulatedEngine(arguments.call_s)))
        judges.append(SimulatedHandle(SimulatedJudge(arguments.judge_s, TIE_SHARE)))
    ranks = [SimulatedHandle(learner)]
    workers = Workers(
        [RolloutClient(engine, 600) for engine in engines],
        [RewardClient(judge, 600) for judge in judges],
        LearnerClient(ranks, 600),
    )
    return workers, [*engines, *judges, *ranks]


def measure(num_engines: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run."""
    from benchmarks.simulated_clock import SimulatedClock
    from benchmarks.simulated_workers import SimulatedLearner
    from cluster.run.loop import Loop
    from cluster.run.recorder import Recorder
    from cluster.run.run_dir import RunDir
    from cluster.run.training_data import TrainingData
    from cluster.run.turns import Turns
    from cluster.weights.engine_weights import EngineWeights
    from cluster.weights.transport import transport_of

    learner = SimulatedLearner(arguments.step_s, arguments.push_s)
    workers, handles = simulated_workers(num_engines, learner, arguments)
    with tempfile.TemporaryDirectory(
        prefix="sightline-scale-", dir=arguments.folder
    ) as name:
        config = run_config(Path(name), num_engines, arguments)
        with RunDir(config, resume=False) as run_dir:
            recorder = Recorder(run_dir.path)
            prompts = simulated_prompts(arguments.prompts, recorder.pairs.store)
            data = TrainingData(prompts, ())
            turns = Turns(config.cluster, workers)
            transport = transport_of(config, workers.learner, turns)
            weights = EngineWeights(workers.rollout, transport, turns)
            loop = Loop(config, run_dir, workers, data, recorder, weights, turns)
            meter = Meter(run_dir.path, config.learner.num_steps, handles)
            with (
                recorder.training(config.learner, 0),
                asyncio.Runner(loop_factory=SimulatedClock) as runner,
            ):
                # Behind the imports.
                meter.note()
                runner.run(loop.run(meter.validate))
            meter.note()
            journal = run_dir.path / "journal" / "events.jsonl"
            journal_mb = journal.stat().st_size / 1e6
    return {
        "engines": num_engines,
        "pairs": config.learner.num_steps * config.learner.global_batch,
        "global_batch": config.learner.global_batch,
        **rates(config, learner, arguments),
        **costs(config, meter),
        "journal_mb": round(journal_mb, 1),
        "dropped": dict(loop.state.drops),
    }


def rates(
    config: RunConfig, learner: SimulatedLearner, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Pairs per second, and how old they are."""
    began = learner.step_began
    tenth = len(began) // 10
    first, last = tenth, len(began) - tenth - 1
    num_pairs = (last - first) * config.learner.global_batch
    rate = num_pairs / (began[last] - began[first])
    total = learner.ages.total()
    ages = {}
    for age in sorted(learner.ages):
        ages[str(age)] = round(learner.ages[age] / total, 3)
    return {
        "pairs_per_s": round(rate, 1),
        "of_ideal": round(rate / ideal_rate(config, arguments), 3),
        "staleness": ages,
    }


def costs(config: RunConfig, meter: Meter) -> dict[str, Any]:
    """CPU time and memory, quarter by quarter."""
    num_pairs = config.learner.num_steps * config.learner.global_batch
    used = meter.controller_s
    quarters = []
    for before, after in pairwise(used):
        quarters.append(round(1e3 * (after - before) / (num_pairs / QUARTERS), 3))
    return {
        "controller_ms": round(1e3 * (used[-1] - used[0]) / num_pairs, 3),
        "controller_ms_of_quarters": quarters,
        "rss_mb": meter.rss_mb,
        "state_kb": meter.state_kb,
    }


def main() -> None:
    """Prints one JSON object as its last line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.controller_scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--pairs", type=int, default=20_000, help="trained in a run")
    parser.add_argument("--prompts", type=int, default=100_000, help="of the set")
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
    parser.add_argument("--checkpoint-interval", type=int, default=25)
    parser.add_argument("--folder", type=Path, help="of the runs; they are deleted")
    arguments = parser.parse_args()
    runs = []
    for num_engines in arguments.engines:
        runs.append(measure(num_engines, arguments))
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    where = measured_on(("pyarrow", "pydantic"))
    print(json.dumps({"benchmark": "controller_scale", **where, "runs": runs}))


if __name__ == "__main__":
    main()

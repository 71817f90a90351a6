"""What a checkpoint costs the steps: `python -m benchmarks.checkpoint [--size issue --steps 4 --saves 3 --out FILE]`.

The learner trains a random model of LLaVA-1.5's architecture (42 M parameters, full fine-tuning, float32, one rank on
the CPU) and saves its state, once beside the next steps and once with the steps waiting (`checkpoint.background`).

    step_s          a step while nothing is written, the median
    copy_s          how long the next step waits; copy_share = copy_s / step_s
    step_beside_s   the first step while it is written; slowdown = step_beside_s / step_s
    write_s         from the copy until the files are on disk, with steps beside it
    waiting_s       the same checkpoint while the steps wait; waiting_share = waiting_s / step_s
    gigabytes       of the checkpoint

Steps alone and steps beside a checkpoint take turns, so that other work of the machine meets both; every figure is a
median. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measured_on import measured_on
from benchmarks.step_model import SIZES, build, make_pairs
from common.config import RunConfig
from common.data.images import ImageStore
from common.records import PreferencePair

BATCH = 4


def run_config(model: Path, folder: Path, background: bool) -> RunConfig:
    """Full fine-tuning on one CPU."""
    return RunConfig.model_validate(
        {
            "run": {"dir": str(folder)},
            "model": {
                "path": str(model),
                "max_length": 8192,
                "tuning": {"kind": "full"},
            },
            "mixture": {"online_fraction": 1.0},
            "checkpoint": {"background": background},
            "learner": {
                "engine": "torch",
                "global_batch": BATCH,
                "micro_batch": BATCH,
                "fast": {"reference_cache": "off", "vision_cache_mb": 0},
            },
        }
    )


def measure(
    config: RunConfig,
    pairs: list[PreferencePair],
    steps: int,
    saves: int,
    folder: Path,
) -> dict[str, float]:
    """Steps, a checkpoint, and steps again, `saves` times; medians."""
    from learner.learner import Learner

    trainer = Learner(config)
    trainer.start()
    numbers = itertools.count()

    def step() -> float:
        begun = time.perf_counter()
        trainer.step(next(numbers), pairs)
        return time.perf_counter() - begun

    # The first one warms up, and torch keeps pages of the first copy for the next ones.
    step()
    trainer.save(folder / "first")
    _wait(trainer)
    alone: list[float] = []
    rounds: list[dict[str, float]] = []
    for number in range(saves):
        alone += [step() for _ in range(steps)]
        rounds.append(_save_once(trainer, step, folder / str(number)))
    trainer.close()
    figures = {"step_s": statistics.median(alone)}
    for name in rounds[0]:
        figures[name] = statistics.median(one[name] for one in rounds)
    return figures


def _save_once(
    trainer: Any, step: Callable[[], float], folder: Path
) -> dict[str, float]:
    """One checkpoint with a step beside it."""
    begun = time.perf_counter()
    trainer.save(folder)
    copied = time.perf_counter()
    whole: list[float] = []
    watch = threading.Thread(target=lambda: whole.append(_wait(trainer)))
    watch.start()
    beside = step()
    watch.join()
    size = _size(folder)
    shutil.rmtree(folder)
    return {
        "copy_s": copied - begun,
        "step_beside_s": beside,
        "write_s": whole[0] - copied,
        "gigabytes": size / 1e9,
    }


def _wait(trainer: Any) -> float:
    """Until everything is on disk; returns when that was."""
    while (report := trainer.written()) is None:
        time.sleep(0.005)
    assert report.fault is None, report.fault
    return time.perf_counter()


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def run(size_name: str, steps: int, saves: int) -> dict[str, Any]:
    """Both ways on the same model and pairs."""
    size = SIZES[size_name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        num_parameters = build(size, folder / "model", "float32")
        pairs = make_pairs(size, BATCH, ImageStore(folder / "images"), offline=False)
        sides = {}
        for name, background in (("beside", True), ("waiting", False)):
            config = run_config(folder / "model", folder / name, background)
            saved = folder / name / "saved"
            sides[name] = measure(config, pairs, steps, saves, saved)
    beside, waiting = sides["beside"], sides["waiting"]
    step_s = beside["step_s"]
    return {
        "parameters": num_parameters,
        **beside,
        "copy_share": beside["copy_s"] / step_s,
        "slowdown": beside["step_beside_s"] / step_s,
        # Without a copy, `save` returns when all is written.
        "waiting_s": waiting["copy_s"],
        "waiting_share": waiting["copy_s"] / waiting["step_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="issue")
    parser.add_argument(
        "--steps", type=int, default=4, help="counted before every checkpoint"
    )
    parser.add_argument("--saves", type=int, default=3, help="counted checkpoints")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    options = parser.parse_args()
    figures: dict[str, Any] = {
        "benchmark": "checkpoint",
        "size": options.size,
        **measured_on(("torch",)),
    }
    for name, value in run(options.size, options.steps, options.saves).items():
        figures[name] = round(value, 4)
    line = json.dumps(figures)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()

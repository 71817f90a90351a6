"""The first hour on a machine with GPUs: does all of it run, and is it as large and as fast as the planner says?

    python -m benchmarks.gpu_first_hour --gpus 8      # LLaVA's 7B with random weights, 4 engines and 4 ranks, LoRA
    python -m benchmarks.gpu_first_hour --gpus 1      # the same on one GPU of 80 GB, engine and rank on half of it each
    python -m benchmarks.gpu_first_hour --size tiny   # any machine, in a minute: does this script run?

It writes a model, prompts and pairs, asks the doctor, and starts `cluster.train` as a user would: three steps of online
and offline pairs, two pushes into running engines. The last line of output is one JSON object: what was measured, and
beside it what was planned. Rows are as long as the plan's longest, so that both say the same.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.memory_watch import GIB, MemoryWatch
from benchmarks.step_model import SIZES, StepSize, build, make_pairs
from cluster import doctor as cluster_doctor
from cluster import train as cluster_train
from common.data.datasets import write_pairs, write_prompts
from common.data.images import ImageStore
from common.journal import read_events
from common.paths import replace_file

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
JUDGE = ROOT / "benchmarks" / "letters_judge.py"
STEPS = 3
PUBLISH_INTERVAL = 2
"""With three steps: after the second, and after the last."""
PUSHES = 2
PROMPTS = 256
SPARE_TOKENS = 8
"""What the template adds to the words."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What runs where.

    Attributes:
        size: of the model and its rows.
        settings: config keys and their values.
        result: name of the file of figures.
    """

    size: StepSize
    settings: dict[str, Any]
    result: str


LORA = {"kind": "lora", "r": 128, "alpha": 256}
ON_GPUS = {
    "model.dtype": "bfloat16",
    "model.tuning": json.dumps(LORA),
    "rollout.max_tokens": 512,
    "rollout.num_cpus": 4,
    "rollout.engine.enforce_eager": "false",
    "rollout.engine.kv_cache_bytes": 0,
    "learner.num_cpus": 4,
    "learner.gradient_checkpointing": "true",
    "learner.micro_batch": 1,
    "loop.call_timeout_s": 1800,
}
LONG_7B = replace(SIZES["7b"], prompt_words=1000, completion_tokens=512)
LAYOUTS = {
    ("tiny", 0): Layout(
        SIZES["smoke"],
        {
            "rollout.max_tokens": 12,
            "learner.global_batch": 4,
            "learner.micro_batch": 2,
            "learner.engine": "torch",
        },
        "gpu_first_hour_cpu.json",
    ),
    ("7b", 1): Layout(
        LONG_7B,
        {
            **ON_GPUS,
            "model.tuning": json.dumps({**LORA, "push": "adapter"}),
            "rollout.num_gpus": 0.5,
            "rollout.engine.gpu_memory_utilization": 0.45,
            "learner.num_gpus": 0.5,
            "learner.global_batch": 8,
        },
        "gpu_first_hour_1.json",
    ),
    ("7b", 8): Layout(
        LONG_7B,
        {
            **ON_GPUS,
            "rollout.num_workers": 4,
            "rollout.num_gpus": 1,
            "learner.num_ranks": 4,
            "learner.num_gpus": 1,
            "learner.zero_stage": 2,
            "learner.global_batch": 32,
        },
        "gpu_first_hour.json",
    ),
}


def main(words: Sequence[str] | None = None) -> int:
    """Make a model, ask the doctor, train, compare; status 1 where the run failed."""
    options = parse(words)
    layout = LAYOUTS[options.size, options.gpus]
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        make_inputs(layout.size, folder, options.dtype)
        settings = [*settings_of(layout, folder), *options.settings]
        result: dict[str, Any] = {
            "benchmark": "gpu_first_hour",
            "size": options.size,
            "gpus": options.gpus,
            "doctor": doctor(settings, is_quick=options.size == "tiny"),
            "plan": plan(settings, folder),
        }
        result |= train(settings, folder)
    out = options.out or RESULTS / layout.result
    replace_file(out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return int(not result["ran"])


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Words `--section.key value` behind it are settings of the run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_first_hour",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=["tiny", "7b"], default="7b")
    parser.add_argument("--gpus", type=int, choices=[0, 1, 8], help="1 or 8; tiny: 0")
    parser.add_argument("--out", type=Path, help="file of the figures")
    parser.add_argument(
        "--scratch", type=Path, help="folder with room for 60 GB; default: TMPDIR's"
    )
    options, settings = parser.parse_known_args(words)
    options.settings = settings
    if options.gpus is None:
        options.gpus = 0 if options.size == "tiny" else 8
    if (options.size, options.gpus) not in LAYOUTS:
        parser.error(f"--size {options.size} does not go with --gpus {options.gpus}")
    options.dtype = "float32" if options.size == "tiny" else "bfloat16"
    return options


def make_inputs(size: StepSize, folder: Path, dtype: str) -> None:
    """A model, prompts and offline pairs; all random, and equal for equal sizes."""
    device = "cpu" if dtype == "float32" else "cuda"
    build(size, folder / "model", dtype, device)
    store = ImageStore(folder / "images")
    write_pairs(folder / "pairs", make_pairs(size, PROMPTS, store, offline=True))
    pairs = make_pairs(size, PROMPTS, store, offline=False)
    write_prompts(folder / "prompts", [pair.prompt for pair in pairs])


def settings_of(layout: Layout, folder: Path) -> list[str]:
    """The settings of the run as words of a command line."""
    size = layout.size
    values = {
        "run.dir": folder / "run",
        "model.path": folder / "model",
        "model.max_length": size.prompt_tokens + size.completion_tokens + SPARE_TOKENS,
        "data.prompts": folder / "prompts",
        "data.offline.path": folder / "pairs",
        "mixture.online_fraction": 0.5,
        "reward.judge.kind": f"{JUDGE}:score",
        "learner.num_steps": STEPS,
        "loop.publish_interval": PUBLISH_INTERVAL,
        "checkpoint.interval": PUBLISH_INTERVAL,
        "evaluation.suites": "[]",
        **layout.settings,
    }
    return [f"--{key}={value}" for key, value in values.items()]


def doctor(settings: Sequence[str], is_quick: bool) -> dict[str, Any]:
    """What the doctor finds: whether all is ready, and every line that is not ok."""
    words = ["--json", *settings]
    if is_quick:
        words.append("--quick")
    report = json.loads(_printed(cluster_doctor.main, words))
    lines = [check for check in report["checks"] if check["level"] != "ok"]
    return {"ready": report["ready"], "lines": lines}


def plan(settings: Sequence[str], folder: Path) -> dict[str, Any]:
    """GiB by role and part, and seconds, as `--dry-run` plans them."""
    out = folder / "plan.json"
    # A run that does not fit is planned all the same, and written.
    _printed(cluster_train.main, ["--dry-run", "--out", str(out), *settings])
    planned = json.loads(out.read_text())
    roles = {}
    for seat in planned["seats"]:
        parts = {name: _gib(size) for name, size in seat["parts"].items() if size}
        total = _gib(sum(seat["parts"].values()))
        roles[seat["role"]] = {"total": total, "parts": parts}
    return {
        "gib": roles,
        "shared_memory_gib": _gib(planned["nodes"]["shared_memory"]),
        "seconds": planned["seconds"],
        "problems": planned["problems"],
    }


def _printed(command: Callable[[Sequence[str]], int], words: Sequence[str]) -> str:
    """What a command prints, called in this process: it has loaded the libraries."""
    output = io.StringIO()
    with redirect_stdout(output):
        command(words)
    return output.getvalue()


def train(settings: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run the training, and say what it held and how long things took."""
    words = [sys.executable, "-m", "cluster.train", *settings]
    print(f"runs: {shlex.join(words)}", file=sys.stderr)
    start = time.monotonic()
    with MemoryWatch() as watch:
        status = subprocess.run(
            words, cwd=ROOT, stdout=sys.stderr, check=False
        ).returncode
    run_dir = folder / "run"
    events = []
    if (run_dir / "journal").exists():
        events = list(read_events(run_dir / "journal" / "events.jsonl"))
    pushes = [event for event in events if event["event"] == "publish"]
    steps = _lines(run_dir / "metrics.jsonl")
    return {
        "ran": status == 0 and len(steps) == STEPS and len(pushes) >= PUSHES,
        "steps": len(steps),
        "pushes": len(pushes),
        "probe_error": max(_errors(pushes), default=None),
        "gib": _rounded(watch.gpu or watch.ram),
        "devices_gib": _rounded(watch.devices),
        "ram_gib": _rounded(watch.ram),
        "disk_gib": _gib(_size_of(run_dir)),
        "seconds": {**_medians(steps), "all": round(time.monotonic() - start, 1)},
    }


def _gib(num_bytes: float) -> float:
    return round(num_bytes / GIB, 3)


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in sorted(figures.items())}


def _errors(pushes: Sequence[dict[str, Any]]) -> list[float]:
    """How far the engines' log-probs were from the learner's after every push."""
    errors: list[float] = []
    for push in pushes:
        errors += push["probe_error"]
    return errors


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _medians(steps: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of every time in the metrics; the first step, which also compiles, counts only where it is the only one."""
    times: dict[str, list[float]] = {}
    for step in steps[1:] or steps:
        for name, value in step.items():
            if name.startswith("time/"):
                times.setdefault(name.removeprefix("time/"), []).append(value)
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


def _size_of(folder: Path) -> int:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes)


if __name__ == "__main__":
    sys.exit(main())

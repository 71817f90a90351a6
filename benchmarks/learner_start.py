"""What a rank of the learner holds while it loads a model: its share under ZeRO-3, and one shard file.

    python -m benchmarks.learner_start [--size 1b] [--ranks 2]

Every case is a process group of its own on this CPU. Figures are bytes of RAM beyond those that a rank has when all is
imported and the ranks have met: `peak` while it loads, `kept` afterwards, of which `anonymous` are no pages of mapped
files. `bound` is the issue's: the rank's share of all that it loads and one shard file. The last line of output is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.step_model import StepSize, build
from common.config import RunConfig
from common.machine.address import free_port

SIZES = {
    "100m": StepSize(hidden=768, mlp=2048, layers=10, heads=12, side=84),
    "1b": StepSize(hidden=2048, mlp=5504, layers=18, heads=16, vision_hidden=512, vision_mlp=2048, side=84),
}  # fmt: skip
SHARDS = {"100m": 25_000_000, "1b": 200_000_000}
CASES = {
    "lora, ZeRO-3": {"zero_stage": 3, "tuning": {"kind": "lora", "r": 16}},
    "full, ZeRO-3": {"zero_stage": 3, "tuning": {"kind": "full"}},
    "full, ZeRO-3, params on CPU": {
        "zero_stage": 3,
        "tuning": {"kind": "full"},
        "offload": "params",
    },
    "lora, ZeRO-2": {"zero_stage": 2, "tuning": {"kind": "lora", "r": 16}},
}
SLACK = 64 << 20
"""Of a process: buffers of the exchange, the model's modules, the header of a file, what the allocator rounds up."""


def main() -> None:
    """Start the ranks of every case and print their figures."""
    args = _parser().parse_args()
    if args.rank is not None:
        _measure(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        report = measure(args.size, args.ranks, Path(folder), args.cases)
    print(json.dumps({"benchmark": "learner_start", **report}))


def measure(
    size: str,
    ranks: int,
    folder: Path,
    cases: list[str],
) -> dict[str, Any]:
    """Figures of every rank of these cases; the model is written below `folder`."""
    model = folder / "model"
    num_params = build(SIZES[size], model, "bfloat16", file_bytes=SHARDS[size])
    files = [file.stat().st_size for file in model.glob("*.safetensors")]
    report: dict[str, Any] = {
        "size": size,
        "ranks": ranks,
        "num_params": num_params,
        "model_bytes": sum(files),
        "largest_shard_bytes": max(files),
    }
    results = []
    for case in cases:
        figures = _of_ranks(model, ranks, case, folder)
        bound = _share(case, ranks) * sum(files) + max(files) + SLACK
        results.append({"case": case, "bound": round(bound), "ranks": figures})
    report["cases"] = results
    return report


def _share(case: str, ranks: int) -> float:
    """Models that a rank keeps: of full tuning two, split up under ZeRO-3."""
    settings: dict[str, Any] = CASES[case]
    models = 2 if settings["tuning"]["kind"] == "full" else 1
    return models / ranks if settings["zero_stage"] == 3 else models


def _of_ranks(model: Path, ranks: int, case: str, folder: Path) -> list[dict[str, Any]]:
    port = free_port()
    processes = []
    for rank in range(ranks):
        words = ["--rank", str(rank), "--ranks", str(ranks), "--port", str(port)]
        words += ["--folder", str(folder), "--model", str(model), "--cases", case]
        command = [sys.executable, "-m", "benchmarks.learner_start", *words]
        processes.append(subprocess.Popen(command))
    statuses = [process.wait() for process in processes]
    assert not any(statuses), statuses
    figures = []
    for rank in range(ranks):
        figures.append(json.loads((folder / f"rank_{rank}.json").read_text()))
    return figures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="1b")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rank", type=int, help="of a process that this one starts")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--port", type=int)
    return parser


def _measure(args: argparse.Namespace) -> None:
    """One rank: load what a learner loads, policy and reference."""
    from benchmarks.resident import anonymous, peak, reset_peak, resident, trim
    from cluster.planner.shape import shape_of
    from learner.start import Start

    settings: dict[str, Any] = dict(CASES[args.cases[0]])
    config = RunConfig.model_validate(
        {
            "run": {"dir": str(args.folder / "run")},
            "model": {
                "path": str(args.model),
                "dtype": "bfloat16",
                "max_length": 256,
                "tuning": settings.pop("tuning"),
            },
            "mixture": {"online_fraction": 1.0},
            "learner": {"num_ranks": args.ranks, "global_batch": 2, **settings},
        }
    )
    start = Start(config, config.model.path, args.rank, args.ranks)
    start.join("127.0.0.1", args.port)
    # Imports what loading would import.
    shape_of(config.model.path)
    trim()
    reset_peak()
    before, before_anonymous = resident(), anonymous()
    begun = time.perf_counter()
    policy = start.policy()
    read = start.reference(policy)
    reference = read() if read is not None else None
    seconds = time.perf_counter() - begun
    most = peak()
    trim()
    figures = {
        "before": before,
        "peak": most - before,
        "kept": resident() - before,
        "anonymous": anonymous() - before_anonymous,
        "seconds": round(seconds, 2),
    }
    del policy, reference
    (args.folder / f"rank_{args.rank}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()

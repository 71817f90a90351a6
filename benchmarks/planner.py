"""How near the planner comes: its bytes against the RAM and the tensors of two ranks on this CPU.

    python -m benchmarks.planner [--sizes small medium large] [--stages 0 1 2 3] [--tunings full lora qlora]
                                 [--dtypes float32 bfloat16] [--micro-batches 1 2] [--folder F]

Every case is a step of LLaVA's architecture with random weights, in a process of its own that was forked behind the
imports and has warmed up on a miniature (`planner_rank.py`). Figures are bytes beyond that:

    resident   RAM around an update, when the allocator has given free pages back: weights, gradients, optimizer state,
               reference, and of them what is offloaded
    peak       the most RAM of a whole step; free blocks that the allocator keeps between others count, too
    held       the storages of all tensors around an update
    kept       those that the policy's forward keeps for its backward pass

A folder that is named keeps the models and the figures: a case that is in it is not measured again. The last line of
output is one JSON object; `worst` is the largest relative error of each figure in every tuning, and `refused` counts
the combinations that a config does not allow, by its words.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmarks.step_model import StepSize, build
from common.config import RunConfig
from common.machine.address import free_port

SIZES = {
    "tiny": StepSize(hidden=128, mlp=256, layers=3, heads=4, vocabulary=1000, vision_hidden=64, vision_mlp=128,
                     side=84, vision_heads=2, completion_tokens=50),
    "small": StepSize(hidden=320, mlp=864, layers=8, heads=5, vocabulary=16_000, side=84, completion_tokens=50),
    "medium": StepSize(side=84, completion_tokens=50),
    "large": StepSize(hidden=768, mlp=2048, layers=10, heads=12, side=84, completion_tokens=50),
}  # fmt: skip
LORA = {"kind": "lora", "r": 16, "alpha": 32}
TUNINGS = {
    "full": {"kind": "full"},
    "lora": LORA,
    "qlora": {**LORA, "quantize": "nf4"},
}
OFFLOADS = ("none", "optimizer", "params")
PAIRS = 2
"""Of a forward."""
RANKS = 2
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(64 << 10),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 10),
}
"""glibc gives a freed tensor back to the system at once, so that RAM is what is in use."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""MKL keeps a buffer of up to 20 MB for every thread that has multiplied; a plan counts them as the process's."""
FIGURES = ("resident", "peak", "held", "kept")
Case = dict[str, Any]
"""size, dtype, tuning, zero_stage, offload, micro_batches"""


def main() -> None:
    """Measure what is not in the folder yet, compare it with the plan, and print both."""
    args = _parser().parse_args()
    cases, refused = cases_of(args)
    with tempfile.TemporaryDirectory() as folder:
        compared = measure(args.folder or Path(folder), cases)
    report = {
        "benchmark": "planner",
        "worst": worst_of_tunings(compared),
        "refused": refused,
        "cases": compared,
    }
    print(json.dumps(report))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = list(SIZES)
    tunings = list(TUNINGS)
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=sizes[1:])
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--tunings", nargs="+", choices=tunings, default=tunings)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[1])
    parser.add_argument("--folder", type=Path)
    return parser


def cases_of(args: argparse.Namespace) -> tuple[list[Case], dict[str, int]]:
    """All combinations that a config allows, and how many others it refuses with which words."""
    cases = []
    refused: Counter[str] = Counter()
    grid = product(
        args.sizes,
        args.dtypes,
        args.tunings,
        args.stages,
        OFFLOADS,
        args.micro_batches,
    )
    for values in grid:
        case = case_of(*values)
        reason = _refusal(case)
        if reason is None:
            cases.append(case)
        else:
            refused[reason] += 1
    return cases, dict(refused)


def case_of(
    size: str,
    dtype: str = "float32",
    tuning: str = "full",
    zero_stage: int = 0,
    offload: str = "none",
    micro_batches: int = 1,
) -> Case:
    """A case by its values."""
    return {
        "size": size,
        "dtype": dtype,
        "tuning": tuning,
        "zero_stage": zero_stage,
        "offload": offload,
        "micro_batches": micro_batches,
    }


def _refusal(case: Case) -> str | None:
    """Why a config does not allow a case; None if it does."""
    try:
        config_of(Path(), case)
    except ValidationError as error:
        return str(error.errors()[0]["msg"])
    return None


def config_of(folder: Path, case: Case) -> RunConfig:
    """The run of a case, with its model below the folder."""
    lengths = SIZES[case["size"]]
    return RunConfig.model_validate(
        {
            "run": {"dir": str(folder / "run")},
            "model": {
                "path": str(_model_path(folder, case)),
                "dtype": case["dtype"],
                # What the template adds to the words is not counted by their size.
                "max_length": lengths.prompt_tokens + lengths.completion_tokens + 8,
                "tuning": TUNINGS[case["tuning"]],
                "max_images": 1,
            },
            "rollout": {"max_tokens": lengths.completion_tokens},
            "mixture": {"online_fraction": 1.0},
            "learner": {
                "global_batch": RANKS * PAIRS * case["micro_batches"],
                "micro_batch": PAIRS,
                "num_ranks": RANKS,
                "zero_stage": case["zero_stage"],
                "offload": case["offload"],
                "input_workers": 0,
                "fast": {"reference_cache": "off", "vision_cache_mb": 0},
            },
        }
    )


def measure(folder: Path, cases: list[Case]) -> list[Case]:
    """The cases with rank 0's figures beside the plan's.

    Args:
        folder: of models and figures; what is in it is not made again.
    """
    missing = [case for case in cases if not figures_file(folder, case).exists()]
    if missing:
        _run_ranks(folder, missing)
    return [_compared(folder, case) for case in cases]


def _run_ranks(folder: Path, cases: list[Case]) -> None:
    for case in cases:
        for size in (case["size"], "tiny"):
            path = _model_path(folder, {**case, "size": size})
            if not path.exists():
                build(SIZES[size], path, case["dtype"])
    (folder / "cases.json").write_text(json.dumps(cases))
    words = ["--folder", str(folder), "--port", str(free_port())]
    ranks = []
    for rank in range(RANKS):
        command = [sys.executable, "-m", "benchmarks.planner_rank", *words]
        environment = {**os.environ, **ALLOCATOR, **ONE_THREAD}
        ranks.append(subprocess.Popen([*command, "--rank", str(rank)], env=environment))
    statuses = [process.wait() for process in ranks]
    assert not any(statuses), statuses


def _model_path(folder: Path, case: Case) -> Path:
    return folder / f"{case['size']}-{case['dtype']}"


def figures_file(folder: Path, case: Case) -> Path:
    """Where rank 0 writes what it has measured."""
    values = [str(value) for value in case.values()]
    return folder / f"figures-{'-'.join(values)}.json"


def _compared(folder: Path, case: Case) -> Case:
    measured = json.loads(figures_file(folder, case).read_text())
    planned = _planned(config_of(folder, case))
    compared = dict(case)
    for name, num_bytes in measured.items():
        error = planned[name] / num_bytes - 1
        compared[name] = {
            "planned": planned[name],
            "measured": num_bytes,
            "error": round(error, 4),
        }
    return compared


def _planned(config: RunConfig) -> dict[str, float]:
    """Of a rank, whatever is offloaded: on a CPU its device is RAM, too."""
    from cluster.planner.activations import activations
    from cluster.planner.plan import cached_shape
    from cluster.planner.rows import longest_rows
    from cluster.planner.seats import learner_parts
    from cluster.planner.training import trained

    shape = cached_shape(config.model.path)
    state = trained(config, shape)
    rows = activations(config, shape, longest_rows(config, shape))
    in_ram = sum(state.offloaded.values())
    tensors = sum(state.device.values()) + in_ram
    on_device = sum(learner_parts(state, rows, 0).values())
    bucket = state.device.get("reduce bucket", 0.0)
    return {
        "resident": tensors + state.hooks,
        "peak": on_device + in_ram + state.hooks,
        "held": tensors - bucket,
        "kept": rows.kept,
    }


def worst_of_tunings(cases: list[Case]) -> dict[str, dict[str, float]]:
    """`worst` by the tuning."""
    errors = {}
    for tuning in TUNINGS:
        of_tuning = [case for case in cases if case["tuning"] == tuning]
        errors[tuning] = worst(of_tuning)
    return errors


def worst(cases: list[Case]) -> dict[str, float]:
    """The largest relative error of each figure."""
    errors = {}
    for name in FIGURES:
        of_figure = [abs(case[name]["error"]) for case in cases if name in case]
        errors[name] = max(of_figure, default=0.0)
    return errors


if __name__ == "__main__":
    main()

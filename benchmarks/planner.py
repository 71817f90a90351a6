"""How near the planner comes: its bytes against the RAM and the tensors of two ranks on this CPU.

    python -m benchmarks.planner [--sizes small medium large] [--stages 0 1 2 3] [--tunings full lora qlora]

Every case is a step of LLaVA's architecture with random weights, in a process of its own that was forked behind the
imports and has warmed up on a miniature. Figures are bytes beyond that:

    resident   RAM around an update, when the allocator has given free pages back: weights, gradients, optimizer state,
               reference, and of them what is offloaded
    peak       the most RAM of a whole step; free blocks that the allocator keeps between others count, too
    held       the storages of all tensors around an update
    kept       those that the policy's forward keeps for its backward pass

The last line of output is one JSON object; `worst` is the largest relative error of each figure.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import resident
from benchmarks.step_model import StepSize, build, make_pairs
from common.chat import encoder_of
from common.config import RunConfig
from common.data.images import ImageStore

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
LEAST_STAGE = {"none": 0, "optimizer": 1, "params": 3}
PAIRS = 2
RANKS = 2
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(64 << 10),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 10),
}
"""glibc gives a freed tensor back to the system at once, so that RAM is what is in use."""
FIGURES = ("resident", "peak", "held", "kept")
Case = dict[str, Any]
"""size, tuning, zero_stage, offload"""


def main() -> None:
    """Start two ranks, compare rank 0's figures with the plan, and print them."""
    args = _parser().parse_args()
    if args.rank is not None:
        _measure(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        cases = measure(Path(folder), cases_of(args.sizes, args.tunings, args.stages))
    print(json.dumps({"benchmark": "planner", "worst": worst(cases), "cases": cases}))


def cases_of(
    sizes: list[str],
    tunings: list[str],
    stages: list[int],
) -> list[Case]:
    """All combinations that a config allows: 4-bit weights and offload each need some stages."""
    cases = []
    for size, tuning, stage, offload in product(sizes, tunings, stages, OFFLOADS):
        splits_four_bits = tuning == "qlora" and stage == 3
        if splits_four_bits or stage < LEAST_STAGE[offload]:
            continue
        case = {
            "size": size,
            "tuning": tuning,
            "zero_stage": stage,
            "offload": offload,
        }
        cases.append(case)
    return cases


def measure(folder: Path, cases: list[Case]) -> list[Case]:
    """The cases with rank 0's figures beside the plan's; models are written below the folder."""
    from learner.engines.ranks import free_address

    for size in {case["size"] for case in cases} | {"tiny"}:
        build(SIZES[size], folder / size, "float32")
    (folder / "cases.json").write_text(json.dumps(cases))
    words = ["--folder", str(folder), "--port", str(free_address()[1])]
    ranks = []
    for rank in range(RANKS):
        command = [sys.executable, "-m", "benchmarks.planner", *words]
        environment = {**os.environ, **ALLOCATOR}
        ranks.append(subprocess.Popen([*command, "--rank", str(rank)], env=environment))
    statuses = [process.wait() for process in ranks]
    assert not any(statuses), statuses
    measured = []
    for number, case in enumerate(cases):
        figures = json.loads((folder / f"figures_{number}.json").read_text())
        measured.append({**case, **figures})
    return measured


def worst(cases: list[Case]) -> dict[str, float]:
    """The largest relative error of each figure."""
    errors = {}
    for name in FIGURES:
        of_figure = [abs(case[name]["error"]) for case in cases if name in case]
        errors[name] = max(of_figure, default=0.0)
    return errors


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    names = list(SIZES)
    parser.add_argument("--sizes", nargs="+", choices=names, default=names[1:])
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2, 3])
    tunings = list(TUNINGS)
    parser.add_argument("--tunings", nargs="+", choices=tunings, default=tunings)
    parser.add_argument("--rank", type=int, help="of a process that this one starts")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--port", type=int)
    return parser


def _measure(args: argparse.Namespace) -> None:
    """One rank: all cases in turn, each in a copy of this process, which has imported everything and run nothing."""
    import deepspeed  # noqa: F401

    import cluster.planner.plan  # noqa: F401
    import learner.learner

    # Which is faster, and hides what is in use.
    vars(learner.learner)["keep_freed_pages"] = lambda: False
    cases = json.loads((args.folder / "cases.json").read_text())
    for number, case in enumerate(cases):
        child = os.fork()
        if child == 0:
            figures = _case(args, case, args.port + 2 * number)
            if args.rank == 0:
                file = args.folder / f"figures_{number}.json"
                file.write_text(json.dumps(figures))
            # Not exit: what the parent had registered for its end is the parent's.
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0, (case, status)


def _config(folder: Path, case: Case) -> RunConfig:
    lengths = SIZES[case["size"]]
    return RunConfig.model_validate(
        {
            "run": {"dir": str(folder / "run")},
            "model": {
                "path": str(folder / case["size"]),
                # What the template adds to the words is not counted by their size.
                "max_length": lengths.prompt_tokens + lengths.completion_tokens + 8,
                "tuning": TUNINGS[case["tuning"]],
            },
            "rollout": {"max_tokens": lengths.completion_tokens},
            "mixture": {"online_fraction": 1.0},
            "learner": {
                "global_batch": RANKS * PAIRS,
                "micro_batch": PAIRS,
                "num_ranks": RANKS,
                "zero_stage": case["zero_stage"],
                "offload": case["offload"],
                "input_workers": 0,
                "fast": {"reference_cache": "off", "vision_cache_mb": 0},
            },
        }
    )


def _warm_up(args: argparse.Namespace, case: Case, port: int) -> None:
    """A step of a miniature: lazy imports, threads and the kernels' scratch are no part of a plan."""
    from learner.learner import Learner

    miniature = {**case, "size": "tiny"}
    config = _config(args.folder, miniature)
    trainer = Learner(config, args.rank, RANKS, "127.0.0.1", port)
    trainer.start()
    trainer.step(0, _pairs(args.folder, miniature, RANKS * PAIRS))
    trainer.close()


def _pairs(folder: Path, case: Case, num: int) -> list[Any]:
    store = ImageStore(folder / "images")
    return make_pairs(SIZES[case["size"]], num, store, False)


def _case(args: argparse.Namespace, case: Case, port: int) -> dict[str, Any]:
    import learner.learner
    from learner.learner import Learner

    _warm_up(args, case, port + 1)
    config = _config(args.folder, case)
    pairs = _pairs(args.folder, case, RANKS * PAIRS)
    # A tokenizer of 32,000 words takes tens of megabytes of Python, which a plan counts as the process's.
    encoder = encoder_of(config.model, config.model.path)
    encoder.encode_prompt(pairs[0].prompt)
    vars(learner.learner)["encoder_of"] = lambda *_: encoder
    resident.trim()
    ram = resident.resident()
    tensors = _held_bytes()
    trainer = Learner(config, args.rank, RANKS, "127.0.0.1", port)
    trainer.start()
    # The moments of the optimizer are there from the first step on.
    trainer.step(0, pairs)
    resident.trim()
    resident.reset_peak()
    around = _around_the_update(trainer, pairs)
    peak = resident.peak() - ram
    kept = None
    # It is the same in stages 1 and 2; in stage 3 gathered weights cannot be told from what is kept.
    if case["zero_stage"] == 0:
        kept = _kept_bytes(trainer, pairs)
    trainer.close()
    measured = {
        "resident": around["resident"] - ram,
        "peak": peak,
        "held": around["held"] - tensors,
        "kept": kept,
    }
    planned = _planned(config)
    compared = {}
    for name, num_bytes in measured.items():
        if num_bytes is not None:
            compared[name] = _compared(planned[name], num_bytes)
    return compared


def _planned(config: RunConfig) -> dict[str, float]:
    """Of a rank, whatever is offloaded: on a CPU its device is RAM, too."""
    from cluster.planner.activations import activations
    from cluster.planner.rows import longest_rows
    from cluster.planner.seats import learner_parts
    from cluster.planner.shape import shape_of
    from cluster.planner.training import trained

    shape = shape_of(config.model.path)
    state = trained(config, shape)
    rows = activations(config, shape, longest_rows(config, shape))
    stays = sum(state.device.values()) + sum(state.offloaded.values())
    on_device = sum(learner_parts(state, rows, 0).values())
    bucket = state.device.get("reduce bucket", 0.0)
    return {
        "resident": stays,
        "peak": on_device + sum(state.offloaded.values()),
        "held": stays - bucket,
        "kept": rows.kept,
    }


def _around_the_update(trainer: Any, pairs: list[Any]) -> dict[str, int]:
    """The most before and after it: before, gradients are there; after, ZeRO-3 has gathered small parameters."""
    engine = trainer.models.engine
    update = engine.step
    most = {"resident": 0, "held": 0}

    def look() -> None:
        resident.trim()
        most["resident"] = max(most["resident"], resident.resident())
        most["held"] = max(most["held"], _held_bytes())

    def watched() -> Any:
        look()
        metrics = update()
        look()
        return metrics

    vars(engine)["step"] = watched
    trainer.step(0, pairs)
    del vars(engine)["step"]
    return most


def _compared(planned: float, measured: float) -> dict[str, float]:
    error = planned / measured - 1
    return {"planned": planned, "measured": measured, "error": round(error, 4)}


def _tensors() -> Iterator[Any]:
    import torch

    gc.collect()
    for item in gc.get_objects():
        # Not isinstance: some lazy modules answer it by importing themselves.
        if issubclass(type(item), torch.Tensor):
            yield item
            if item.is_leaf and item.grad is not None:
                yield item.grad


def _held_bytes() -> int:
    """Bytes of the storages of all tensors, without buckets that DeepSpeed reserves and a CPU never fills."""
    from cluster.planner.training import BUCKET_NUMEL

    sizes: dict[int, int] = {}
    for tensor in _tensors():
        storage = tensor.untyped_storage()
        if storage.nbytes() < BUCKET_NUMEL:
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _kept_bytes(trainer: Any, pairs: list[Any]) -> int:
    """Bytes that the policy's forward keeps for its backward pass, without the parameters themselves."""
    import torch

    (micro_batch,) = trainer.plan(pairs).micro_batches
    batch = trainer.models.collate(micro_batch.pairs)
    weights = {
        parameter.untyped_storage().data_ptr()
        for parameter in trainer.policy.parameters()
    }
    sizes: dict[int, int] = {}
    shared: set[int] = set()

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if isinstance(tensor, torch.nn.Parameter):
            shared.add(storage.data_ptr())
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logps = trainer.models.engine.module(batch)
    kept = 0
    for address, num_bytes in sizes.items():
        if address not in weights | shared:
            kept += num_bytes
    # ZeRO wants a backward pass behind every forward.
    trainer.models.engine.backward(logps.token_logps.sum() * 0)
    trainer.models.engine.step()
    return kept


if __name__ == "__main__":
    main()

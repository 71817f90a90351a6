"""How near the planner comes: its bytes against those of the tensors that two ranks hold on this CPU.

    python -m benchmarks.planner [--sizes tiny small medium] [--stages 0 1 2 3]

Every case is a step of LLaVA's architecture with random weights. `held` are the storages of all tensors around an
update (weights, gradients, optimizer, reference), `kept` those that the policy's forward keeps for its backward pass.
The last line of output is one JSON object; `worst` is the largest relative error.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.step_model import StepSize, build, make_pairs
from common.config import RunConfig
from common.data.images import ImageStore

SIZES = {
    "tiny": StepSize(hidden=128, mlp=256, layers=3, heads=4, vocabulary=1000, vision_hidden=64, vision_mlp=128,
                     side=84, vision_heads=2, completion_tokens=50),
    "small": StepSize(hidden=256, mlp=768, layers=4, heads=4, vocabulary=8000, vision_hidden=128, vision_mlp=512,
                      side=84),
    "medium": StepSize(side=84),
}  # fmt: skip
TUNINGS = {"full": {"kind": "full"}, "lora": {"kind": "lora", "r": 16, "alpha": 32}}
PAIRS = 4
RANKS = 2


def main() -> None:
    """Start two ranks, compare rank 0's figures with the plan, and print them."""
    args = _parser().parse_args()
    if args.rank is not None:
        _measure(args)
        return
    from learner.engines.ranks import free_address

    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            build(SIZES[size], Path(folder) / size, "float32")
        words = ["--folder", folder, "--port", str(free_address()[1])]
        words += ["--sizes", *args.sizes, "--stages", *map(str, args.stages)]
        ranks = []
        for rank in range(RANKS):
            command = [sys.executable, "-m", "benchmarks.planner", *words]
            ranks.append(subprocess.Popen([*command, "--rank", str(rank)]))
        statuses = [process.wait() for process in ranks]
        assert not any(statuses), statuses
        cases = json.loads((Path(folder) / "cases.json").read_text())
    worst = 0.0
    for case in cases:
        for name in ("held", "kept"):
            if name in case:
                worst = max(worst, abs(case[name]["error"]))
    print(json.dumps({"benchmark": "planner", "worst": worst, "cases": cases}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--rank", type=int, help="of a process that this one starts")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--port", type=int)
    return parser


def _measure(args: argparse.Namespace) -> None:
    """One rank: all cases in turn."""
    cases = []
    combinations = product(args.sizes, TUNINGS, args.stages)
    for number, (size, tuning, stage) in enumerate(combinations):
        config = _config(args.folder, size, tuning, stage)
        case = _case(config, SIZES[size], args.rank, args.port + number, args.folder)
        cases.append({"size": size, "tuning": tuning, "zero_stage": stage, **case})
    if args.rank == 0:
        (args.folder / "cases.json").write_text(json.dumps(cases))


def _config(folder: Path, size: str, tuning: str, stage: int) -> RunConfig:
    lengths = SIZES[size]
    return RunConfig.model_validate(
        {
            "run": {"dir": str(folder / "run")},
            "model": {
                "path": str(folder / size),
                # What the template adds to the words is not counted by their size.
                "max_length": lengths.prompt_tokens + lengths.completion_tokens + 8,
                "tuning": TUNINGS[tuning],
            },
            "rollout": {"max_tokens": lengths.completion_tokens},
            "mixture": {"online_fraction": 1.0},
            "learner": {
                "global_batch": RANKS * PAIRS,
                "micro_batch": PAIRS,
                "num_ranks": RANKS,
                "zero_stage": stage,
                "fast": {"reference_cache": "off", "vision_cache_mb": 0},
            },
        }
    )


def _case(
    config: RunConfig,
    size: StepSize,
    rank: int,
    port: int,
    folder: Path,
) -> dict[str, Any]:
    from cluster.planner.activations import activations
    from cluster.planner.rows import longest_rows
    from cluster.planner.shape import shape_of
    from cluster.planner.training import trained
    from learner.learner import Learner

    before = _held_bytes()
    learner = Learner(config, rank, RANKS, "127.0.0.1", port)
    learner.start()
    pairs = make_pairs(size, RANKS * PAIRS, ImageStore(folder / "images"), False)
    # The moments of the optimizer are there from the first step on.
    learner.step(0, pairs)
    held = _bytes_around_the_update(learner, pairs) - before
    kept = _kept_bytes(learner, pairs) if config.learner.zero_stage < 3 else None
    learner.close()
    shape = shape_of(config.model.path)
    planned = sum(trained(config, shape).device.values())
    rows = activations(config, shape, longest_rows(config, shape))
    compared = {"held": _compared(planned, held)}
    # Under ZeRO-3 gathered weights cannot be told from what is kept.
    if kept is not None:
        compared["kept"] = _compared(rows.kept, kept)
    return compared


def _bytes_around_the_update(learner: Any, pairs: list[Any]) -> int:
    """The most before and after it: before, gradients are there; after, ZeRO-3 has gathered small parameters."""
    engine = learner.models.engine
    update = engine.step
    held: list[int] = []

    def watched() -> Any:
        held.append(_held_bytes())
        metrics = update()
        held.append(_held_bytes())
        return metrics

    vars(engine)["step"] = watched
    learner.step(0, pairs)
    del vars(engine)["step"]
    return max(held)


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


def _kept_bytes(learner: Any, pairs: list[Any]) -> int:
    """Bytes that the policy's forward keeps for its backward pass, without the parameters themselves."""
    import torch

    (micro_batch,) = learner.plan(pairs).micro_batches
    batch = learner.models.collate(micro_batch.pairs)
    weights = {
        parameter.untyped_storage().data_ptr()
        for parameter in learner.policy.parameters()
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
        logps = learner.models.engine.module(batch)
    kept = 0
    for address, num_bytes in sizes.items():
        if address not in weights | shared:
            kept += num_bytes
    # ZeRO wants a backward pass behind every forward.
    learner.models.engine.backward(logps.token_logps.sum() * 0)
    learner.models.engine.step()
    return kept


if __name__ == "__main__":
    main()

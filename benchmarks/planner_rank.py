"""One of the two ranks that `benchmarks.planner` starts: a step of every case, measured from within.

python -m benchmarks.planner_rank --folder F --port P --rank R
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import resident
from benchmarks.planner import PAIRS, RANKS, SIZES, Case, config_of, figures_file
from benchmarks.step_model import make_pairs
from common.chat import encoder_of
from common.data.images import ImageStore


def main() -> None:
    """All cases in turn, each in a copy of this process, which has imported everything and run nothing."""
    args = _parser().parse_args()
    import deepspeed  # noqa: F401

    import cluster.planner.moments  # noqa: F401
    import learner.learner

    # Which is faster, and hides what is in use.
    vars(learner.learner)["keep_freed_pages"] = lambda: False
    cases = json.loads((args.folder / "cases.json").read_text())
    for number, case in enumerate(cases):
        child = os.fork()
        if child == 0:
            measured = _case(args, case, args.port + 2 * number)
            if args.rank == 0:
                figures_file(args.folder, case).write_text(json.dumps(measured))
            # Not exit: what the parent had registered for its end is the parent's.
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0, (case, status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    return parser


def _warm_up(args: argparse.Namespace, case: Case, port: int) -> None:
    """A step of a miniature: lazy imports, threads and the kernels' scratch are no part of a plan."""
    from learner.learner import Learner

    miniature = {**case, "size": "tiny"}
    config = config_of(args.folder, miniature)
    trainer = Learner(config, args.rank, RANKS, "127.0.0.1", port)
    trainer.start()
    trainer.step(0, _pairs(args.folder, miniature))
    trainer.close()


def _pairs(folder: Path, case: Case) -> list[Any]:
    store = ImageStore(folder / "images")
    num = RANKS * PAIRS * case["micro_batches"]
    return make_pairs(SIZES[case["size"]], num, store, False)


def _case(args: argparse.Namespace, case: Case, port: int) -> dict[str, int]:
    """Bytes by the name of the figure."""
    import learner.start
    from learner.learner import Learner

    _warm_up(args, case, port + 1)
    config = config_of(args.folder, case)
    pairs = _pairs(args.folder, case)
    # A tokenizer of 32,000 words takes tens of megabytes of Python, which a plan counts as the process's.
    encoder = encoder_of(config.model, config.model.path)
    encoder.encode_prompt(pairs[0].prompt)
    vars(learner.start)["encoder_of"] = lambda *_: encoder
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
    measured = {
        "resident": around["resident"] - ram,
        "peak": peak,
        "held": around["held"] - tensors,
    }
    # It is the same in stages 1 and 2; in stage 3 gathered weights cannot be told from what is kept.
    if case["zero_stage"] == 0:
        measured["kept"] = _kept_bytes(trainer, pairs)
    trainer.close()
    return measured


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
    from cluster.planner.moments import BUCKET_NUMEL

    sizes: dict[int, int] = {}
    for tensor in _tensors():
        storage = tensor.untyped_storage()
        if storage.nbytes() != BUCKET_NUMEL * tensor.itemsize:
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _kept_bytes(trainer: Any, pairs: list[Any]) -> int:
    """Bytes that the policy's forward keeps for its backward pass, without the parameters themselves."""
    import torch

    micro_batch = trainer.plan(pairs).micro_batches[0]
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

"""One rank of the memory test: `python -m tests.learner.memory_worker RANK WORLD PORT MODEL IMAGES OUT`.

A step and a push under ZeRO-3; OUT/memory_RANK.json says in bytes what was held and what the push took on top.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn
from torch.profiler import ProfilerActivity, profile

from common.images import ImageStore
from learner.learner import Learner
from tests.learner.helpers import make_pairs, run_config


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that tensors made meanwhile held at one time, as torch's CPU allocator reports every block."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = call()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    del kept
    return peak


def held_bytes(module: nn.Module) -> int:
    """Of a module's parameters on this rank: its shares, and what happens to be whole."""
    return sum(each.data.nbytes + getattr(each, "ds_tensor", each.data[:0]).nbytes for each in module.parameters())


def main() -> None:
    rank, world_size, port = map(int, sys.argv[1:4])
    model, images, out = map(Path, sys.argv[4:])
    config = run_config("deepspeed", model=model, zero_stage=3, num_ranks=world_size, micro_batch=1)
    trainer = Learner(config, rank, world_size, "127.0.0.1", port)
    trainer.start()
    trainer.step(0, make_pairs(ImageStore(images), 2))
    copy = trainer._reference.copy
    assert copy is not None
    found = {
        "policy": held_bytes(trainer._policy),
        "reference": held_bytes(copy),
        "push": peak_bytes(lambda: trainer.publish(1)),
        "policy_after": held_bytes(trainer._policy),
    }
    (out / f"memory_{rank}.json").write_text(json.dumps(found))
    trainer.close()


if __name__ == "__main__":
    main()

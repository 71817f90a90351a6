"""One rank of a learner that goes on from a checkpoint of another number of ranks: `RANK WORLD IMAGES OUT CASE…`.

A case without `reads` trains the steps before the checkpoint itself. All save what they hold, and train on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

import learner.engines.deepspeed_engine
from common.config import RunConfig
from common.data.images import ImageStore
from common.records import PreferencePair
from learner.learner import Learner
from tests.learner.helpers import make_pairs, run_config, train, written
from tests.learner.rank_processes import run_cases

STEPS_BEFORE = 2
STEPS = 4
BATCH = 8


def batches_of(store: ImageStore) -> list[list[PreferencePair]]:
    """The global batch of every step."""
    return [make_pairs(store, BATCH, BATCH * step) for step in range(STEPS)]


def config_of(engine: str, **learner: Any) -> RunConfig:
    return run_config(engine, global_batch=BATCH, micro_batch=2, **learner)


def run(
    case: dict[str, Any],
    rank: int,
    world_size: int,
    port: int,
    images: Path,
    out: Path,
) -> None:
    """Write `saved/`, and what came out of the steps after it."""
    batches = batches_of(ImageStore(images))
    config = config_of("deepspeed", num_ranks=world_size, **case["learner"])
    trainer = Learner(config, rank, world_size, "127.0.0.1", port)
    trainer.start()
    notes: list[str] = []
    if "reads" in case:
        notes = trainer.load(out.parent / case["reads"] / "saved")
    else:
        train(trainer, batches[:STEPS_BEFORE])
    trainer.save(out / "saved")
    metrics = train(trainer, batches[STEPS_BEFORE:], STEPS_BEFORE)
    _, arrays = trainer.publish(1)
    written(trainer)
    if rank == 0:
        np.savez(out / "weights.npz", **arrays)
    outcome = {"metrics": metrics, "notes": notes}
    (out / f"rank_{rank}.json").write_text(json.dumps(outcome))
    # Whoever reads it next needs the files of all.
    dist.barrier()
    trainer.close()


def main() -> None:
    # Otherwise nothing of a tiny model would be cut up.
    learner.engines.deepspeed_engine.PERSISTENT_NUMEL = 0
    run_cases(run)


if __name__ == "__main__":
    main()

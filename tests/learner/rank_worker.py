"""One rank of `test_ranks`: `python -m tests.learner.rank_worker RANK WORLD PORT STAGE TUNING IMAGES OUT`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.images import ImageStore
from common.records import PreferencePair
from learner.learner import Learner
from tests.learner.helpers import LORA, make_pairs, run_config, text_prompt


def batch_of(store: ImageStore, step: int) -> list[PreferencePair]:
    """Uneven shares: rank 1 (odd places) loses two of its three pairs in step 1, and has text only in step 2."""
    pairs = make_pairs(store, 6, 6 * step)
    if step == 1:
        for index in (1, 3):
            pairs[index] = replace(pairs[index], rejected=pairs[index].chosen)
    if step == 2:
        for index in (1, 3, 5):
            pairs[index] = replace(pairs[index], prompt=text_prompt())
    return pairs


def main() -> None:
    rank, world_size, port, stage = map(int, sys.argv[1:5])
    tuning, images, out = sys.argv[5], Path(sys.argv[6]), Path(sys.argv[7])
    # All of rank 1's pairs are of source `bdhs`, none of rank 0's: their forwards must meet all the same.
    losses = {"bdhs": {"kind": "povid", "povid_shared_indices": False, "weight": 0.5}} if "povid" in tuning else {}
    if "mdpo" in tuning:
        losses = {"bdhs": {"kind": "mdpo", "weight": 0.5}, "online": {"kind": "mpo", "beta": 0.5}}
    config = run_config(
        "deepspeed",
        LORA if "lora" in tuning else None,
        zero_stage=stage,
        num_ranks=world_size,
        micro_batch=2,
        source_losses=losses,
    )
    learner = Learner(config, rank, world_size, "127.0.0.1", port)
    learner.start()
    store = ImageStore(images)
    learner.set_probe(batch_of(store, 0)[0].prompt, (5, 6, 7))
    results = [learner.step(step, batch_of(store, step)) for step in range(3)]
    learner.save(out / "checkpoint")
    result, dropped = learner.step(3, batch_of(store, 3))
    manifest, arrays = learner.publish(1)
    learner.load(out / "checkpoint")
    again, _ = learner.step(3, batch_of(store, 3))
    resumed, _ = learner.publish(1)
    assert (manifest is None) == (rank > 0)
    if manifest is not None and resumed is not None:
        assert resumed.checksum == manifest.checksum
        np.savez(out / "weights.npz", **arrays)
    drops = [drop.id for _, found in results for drop in found]
    keys = ("loss", "grad_norm", "tokens", "rewards/margins", "rewards/margins/bdhs")
    metrics = [round(step.metrics[key], 5) for step in (*(found for found, _ in results), result) for key in keys]
    (out / f"rank_{rank}.txt").write_text(f"{drops} {dropped} {metrics} {again.pair_ids}")
    learner.close()


if __name__ == "__main__":
    main()

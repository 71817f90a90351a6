"""One rank of `test_ranks`: `python -m tests.learner.rank_worker RANK WORLD PORTS IMAGES OUT CASE...`.

It goes through its cases one after the other, each in a process group of its own, and writes OUT/CASE/rank_RANK.json.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import learner.engines.deepspeed_engine
import learner.forward.logps
import learner.update
from common.config import RunConfig
from common.data.images import ImageStore
from common.records import PreferencePair
from learner.learner import Learner
from learner.losses.pair_logps import pair_logps
from tests.learner.helpers import LORA, make_pairs, run_config, text_prompt

NUM_STEPS = 7


def batch_of(store: ImageStore, step: int) -> list[PreferencePair]:
    """Global batches whose shares differ; rank 1 has the odd places, and `micro_batch` is 2.

    step   pairs of rank 0, 1   what is uneven
    0      3, 3                 the last micro-batch of each
    1      3, 1                 two pairs of rank 1 are refused: 2 micro-batches against 1
    2      3, 3                 rank 1 has no image
    3      3, 2                 5 pairs on 2 ranks
    4      2, 3                 nobody has an image
    5      3, 0                 all of rank 1 is refused
    6      3, 3                 long completions on rank 0: three chunks of the head against one
    """
    pairs = make_pairs(store, 6, 6 * step)
    refused = {1: (1, 3), 5: (1, 3, 5)}
    for index in refused.get(step, ()):
        pairs[index] = replace(pairs[index], rejected=pairs[index].chosen)
    if step == 2:
        for index in (1, 3, 5):
            pairs[index] = replace(pairs[index], prompt=text_prompt())
    if step == 3:
        del pairs[5]
    if step == 4:
        pairs = [replace(pair, prompt=text_prompt()) for pair in pairs]
        pairs[0] = replace(pairs[0], rejected=pairs[0].chosen)
    if step == 6:
        for index in (0, 2, 4):
            chosen = pairs[index].chosen
            longer = " ".join([chosen.text] * 5)
            pairs[index] = replace(pairs[index], chosen=replace(chosen, text=longer))
    return pairs


def config_of(case: dict[str, Any], world_size: int, out: Path) -> RunConfig:
    # All of rank 1's pairs are of source `bdhs`, none of rank 0's: their forwards must meet all the same.
    tuning = case["tuning"]
    losses: dict[str, dict[str, Any]] = {}
    if "povid" in tuning:
        losses = {"bdhs": {"kind": "povid", "shared_tokens": False, "weight": 0.5}}
    if "mdpo" in tuning:
        losses = {
            "bdhs": {"kind": "mdpo", "weight": 0.5},
            "online": {"kind": "mpo", "beta": 0.5},
        }
    config = run_config(
        "deepspeed",
        LORA if "lora" in tuning else None,
        num_ranks=world_size,
        micro_batch=2,
        source_losses=losses,
        **case["learner"],
    )
    return RunConfig.model_validate(
        config.model_dump()
        | {"run": {"dir": out / "run"}, "checkpoint": {"interval": 3}}
    )


def infinite_loss_of(pair_id: str) -> Any:
    """While this lasts the loss of one pair, so of one rank, is inf; its gradient is finite."""

    def broken(policy: Any, reference: Any, pairs: Any) -> Any:
        logps = pair_logps(policy, reference, pairs)
        bad = torch.tensor(
            [-math.inf if pair.pair.id == pair_id else 0.0 for pair in pairs]
        )
        return replace(logps, ref_rejected=logps.ref_rejected + bad)

    return patch.object(learner.update, "pair_logps", broken)


def run(
    case: dict[str, Any],
    rank: int,
    world_size: int,
    port: int,
    images: Path,
    out: Path,
) -> None:
    learner = Learner(
        config_of(case, world_size, out), rank, world_size, "127.0.0.1", port
    )
    learner.start()
    store = ImageStore(images)
    learner.set_probe(batch_of(store, 0)[0].prompt, (5, 6, 7))
    learner.save(out / "start")
    results = [learner.step(step, batch_of(store, step)) for step in range(NUM_STEPS)]
    learner.save(out / "checkpoint")
    results.append(learner.step(NUM_STEPS, batch_of(store, 0)))
    with infinite_loss_of(batch_of(store, 0)[1].id):
        skipped, _ = learner.step(NUM_STEPS + 1, batch_of(store, 0))
    manifest, arrays = learner.publish(1)
    learner.load(out / "checkpoint")
    again, _ = learner.step(NUM_STEPS, batch_of(store, 0))
    resumed, _ = learner.publish(1)
    assert (manifest is None) == (rank > 0)
    if manifest is not None and resumed is not None:
        assert resumed.checksum == manifest.checksum
        assert resumed.change_norm == manifest.change_norm
        np.savez(out / "weights.npz", **arrays)
    probe = None
    if manifest is not None and manifest.probe is not None:
        probe = manifest.probe.token_logprobs
    outcome = {
        "metrics": [result.metrics for result, _ in results],
        "trained": [result.pair_ids for result, _ in results],
        "dropped": [[drop.id for drop in dropped] for _, dropped in results],
        "again": again.pair_ids,
        "skipped": skipped.pair_ids,
        "change_norm": None if manifest is None else manifest.change_norm,
        "probe": probe,
    }
    (out / f"rank_{rank}.json").write_text(json.dumps(outcome))
    learner.close()


def main() -> None:
    rank, world_size = map(int, sys.argv[1:3])
    ports, images, out = json.loads(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5])
    # Otherwise nothing of a tiny model would be split up, and no completion would need a second call of the head.
    learner.engines.deepspeed_engine.PERSISTENT_NUMEL = 0
    learner.forward.logps.CHUNK_POSITIONS = 24
    for case, port in zip(map(json.loads, sys.argv[6:]), ports, strict=True):
        run(case, rank, world_size, port, images, out / case["name"])


if __name__ == "__main__":
    main()

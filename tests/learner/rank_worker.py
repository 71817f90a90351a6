"""One rank of `test_ranks`: `python -m tests.learner.rank_worker RANK WORLD IMAGES OUT CASE...`.

It goes through its cases one after the other, each in a process group of its own, and writes OUT/CASE/rank_RANK.json.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

import learner.engines.deepspeed_engine
import learner.forward.logps
import learner.update
from common.config import RunConfig
from common.data.images import ImageStore
from common.records import PreferencePair, WeightManifest
from common.weights import from_arrays
from learner.learner import Learner
from learner.losses.pair_logps import pair_logps
from tests.learner.helpers import (
    LORA,
    identical,
    make_pairs,
    run_config,
    without_image,
    written,
)
from tests.learner.rank_processes import run_cases
from tests.learner.streams import streamed
from tests.probes import one_answer, token_logprobs

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
    refused = {1: (1, 3), 4: (0,), 5: (1, 3, 5)}
    imageless = {2: (1, 3, 5), 4: range(6)}
    lengthened = {6: (0, 2, 4)}
    for index in imageless.get(step, ()):
        pairs[index] = without_image(pairs[index])
    for index in refused.get(step, ()):
        pairs[index] = identical(pairs[index])
    for index in lengthened.get(step, ()):
        pairs[index] = longer(pairs[index])
    if step == 3:
        del pairs[5]
    return pairs


def longer(pair: PreferencePair) -> PreferencePair:
    """The pair with five times the chosen answer."""
    text = " ".join([pair.chosen.text] * 5)
    chosen = replace(pair.chosen, text=text)
    return replace(pair, chosen=chosen)


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
    tree = config.model_dump()
    tree["run"] = {"dir": out / "run"}
    tree["checkpoint"] = {"interval": 3}
    return RunConfig.model_validate(tree)


def infinite_loss_of(pair_id: str) -> Any:
    """While this lasts the loss of one pair, so of one rank, is inf; its gradient is finite."""

    def broken(policy: Any, reference: Any, pairs: Any) -> Any:
        logps = pair_logps(policy, reference, pairs)
        bad = torch.zeros(len(pairs))
        for index, pair in enumerate(pairs):
            if pair.pair.id == pair_id:
                bad[index] = -math.inf
        return replace(logps, ref_rejected=logps.ref_rejected + bad)

    return patch.object(learner.update, "pair_logps", broken)


def check_stream(
    manifest: WeightManifest,
    arrays: Mapping[str, Any],
    stream: WeightManifest | None,
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """A streamed push of all ranks carries what the gathered one does."""
    assert stream is not None
    gathered = from_arrays(arrays)
    assert tensors.keys() == gathered.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, gathered[name]), name
    assert math.isclose(stream.change_norm, manifest.change_norm, rel_tol=1e-6)


def run(
    case: dict[str, Any],
    rank: int,
    world_size: int,
    port: int,
    images: Path,
    out: Path,
) -> None:
    """Train, skip a step, publish, go back to the checkpoint, train and publish again; write down what came out."""
    config = config_of(case, world_size, out)
    learner = Learner(config, rank, world_size, "127.0.0.1", port)
    learner.start()
    store = ImageStore(images)
    first_batch = batch_of(store, 0)
    learner.set_probe(one_answer(first_batch[0].prompt, (5, 6, 7)))
    learner.save(out / "start")
    written(learner)
    ahead = learner.models.collator.ahead
    while ahead is not None and not ahead.is_up:
        time.sleep(0.01)
    results = []
    for step in range(NUM_STEPS):
        # As a run's loop does; without input workers nothing comes of it.
        learner.prepare(step + 1, dict(enumerate(batch_of(store, step + 1))))
        results.append(learner.step(step, batch_of(store, step)))
    learner.save(out / "checkpoint")
    results.append(learner.step(NUM_STEPS, first_batch))
    with infinite_loss_of(first_batch[1].id):
        skipped, _ = learner.step(NUM_STEPS + 1, first_batch)
    manifest, arrays = learner.publish(1)
    stream, tensors = streamed(learner, 1)
    written(learner)
    # Both ranks' files.
    dist.barrier()
    learner.load(out / "checkpoint")
    again, _ = learner.step(NUM_STEPS, first_batch)
    resumed, _ = learner.publish(1)
    # Only rank 0 has something to send.
    assert (manifest is None) == (rank > 0)
    if manifest is not None and resumed is not None:
        assert resumed.checksum == manifest.checksum
        assert resumed.change_norm == manifest.change_norm
        np.savez(out / "weights.npz", **arrays)
        check_stream(manifest, arrays, stream, tensors)
    probe = None
    if manifest is not None and manifest.probe is not None:
        probe = token_logprobs(manifest.probe)
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
    # Otherwise nothing of a tiny model would be split up, and no completion would need a second call of the head.
    learner.engines.deepspeed_engine.PERSISTENT_NUMEL = 0
    learner.forward.logps.CHUNK_POSITIONS = 24
    run_cases(run)


if __name__ == "__main__":
    main()

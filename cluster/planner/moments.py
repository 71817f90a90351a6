"""Bytes that a rank's device needs for a while, beside what stays: with activations, in backward; and without.

In backward: the largest gradient whole, before it is added to others or put into a bucket; and what ZeRO-3 gathers
(`gathering.py`).

Gradients are reduced in buckets of BUCKET_NUMEL numbers, and what travels is a copy of a bucket:

    stage   buckets                                                      reduced
    0       none                                                         in the update
    1       one, from backward until the update is done                  in the update
    2       two, in backward: one travels while the other is filled      in backward, each when it is full
    3       one, which stays                                             in backward, when it is full

Where all gradients fit into one bucket, it is reduced when backward is through and no activations are left. A GPU has
its buckets from the beginning of backward; on a CPU pages that nobody has written to do not exist yet. Under ZeRO-3
gloo copies once more what it reduces and scatters.

The update has its gradients in float32, T 4 / n, made from a flat copy of T b / n where b is not 4.
"""

from __future__ import annotations

from cluster.planner.activations import FLOAT32, ITEM_BYTES
from cluster.planner.gathering import (
    fetched_ahead,
    whole_behind_backward,
    whole_in_backward,
)
from cluster.planner.shape import ModelShape
from cluster.planner.trainable import largest_trained, stage_of, trained_numel
from common.config import RunConfig
from learner.engines.deepspeed_engine import overlaps

BUCKET_NUMEL = 500_000_000
"""DeepSpeed's reduce_bucket_size, which we leave as it is."""


def bytes_with_activations(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    """Beside the activations, in backward."""
    item = ITEM_BYTES[config.model.dtype]
    numel = trained_numel(config, shape)
    num_bytes = largest_trained(config, shape) * item + whole_in_backward(config, shape)
    is_full = stage_of(config) > 1 and numel > BUCKET_NUMEL
    if is_full:
        num_bytes += _travelling_bytes(config, numel)
    if is_full or config.learner.num_gpus:
        num_bytes += _passing_bucket_bytes(config, numel)
    return num_bytes


def bytes_without_activations(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    """At the beginning of a forward, while gradients are reduced, or in the update: the largest of them."""
    numel = trained_numel(config, shape)
    reduction = whole_behind_backward(config, shape)
    reduction += _passing_bucket_bytes(config, numel) + _travelling_bytes(config, numel)
    if numel <= BUCKET_NUMEL and not _keeps_gradients(config):
        # There are none of a forward before, and those of this one are still in the bucket.
        reduction -= numel * ITEM_BYTES[config.model.dtype] / config.learner.num_ranks
    update = _optimizer_bytes(config, numel)
    if stage_of(config) == 1:
        update += _passing_bucket_bytes(config, numel)
    return max(fetched_ahead(config, shape), reduction, update)


def bucket_bytes(
    config: RunConfig,
    numel: int,
) -> float:
    """All buckets of gradients, as far as they are written to where they are on a CPU."""
    stage = stage_of(config)
    if stage == 0:
        return 0.0
    bucket = BUCKET_NUMEL * (2 if overlaps(stage) else 1)
    if config.learner.num_gpus == 0:
        # Stage 1 moves gradients into it that are there already, and frees the pages that they had.
        written = 0 if stage == 1 else numel
        bucket = min(bucket, written)
    return float(bucket * ITEM_BYTES[config.model.dtype])


def _passing_bucket_bytes(
    config: RunConfig,
    numel: int,
) -> float:
    """Without that of stage 3, which stays."""
    return 0.0 if stage_of(config) == 3 else bucket_bytes(config, numel)


def _travelling_bytes(
    config: RunConfig,
    numel: int,
) -> float:
    """The copy of a bucket that is reduced: of one piece for every rank that owns some of it."""
    learner = config.learner
    is_one_piece = learner.num_ranks == 1 and stage_of(config) in (1, 2)
    if is_one_piece or learner.engine == "torch":
        return 0.0
    by_gloo = stage_of(config) == 3 and learner.num_gpus == 0
    copies = 2 if by_gloo else 1
    return float(copies * min(BUCKET_NUMEL, numel) * ITEM_BYTES[config.model.dtype])


def _keeps_gradients(config: RunConfig) -> bool:
    """Whether there are gradients when a backward pass begins: only under stage 2 and with one forward a step not."""
    learner = config.learner
    if stage_of(config) != 2 or learner.offload != "none":
        return True
    pairs = learner.global_batch // learner.num_ranks
    return bool(learner.fast.pack_tokens) or pairs > learner.micro_batch


def _optimizer_bytes(
    config: RunConfig,
    numel: int,
) -> float:
    """Of the optimizer, on the device where it works."""
    stage = stage_of(config)
    if stage == 0 or config.learner.offload != "none":
        return 0.0
    item = ITEM_BYTES[config.model.dtype]
    flat_copy = item if stage < 3 and item < FLOAT32 else 0
    return numel * (FLOAT32 + flat_copy) / config.learner.num_ranks

"""The RAM, shared memory and disk that a run takes.

Actors fill nodes in the order of the placement table. A push through Ray lies in the object store of every node that
has an engine or rank 0, and once more in shared memory for the engines of a node (`actors/weights/`); the object store
is in shared memory, too. A push in buckets lies nowhere whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.planner.activations import ITEM_BYTES
from cluster.planner.gpu_kinds import PROCESS_BYTES
from cluster.planner.seats import Seat
from cluster.planner.shape import ModelShape, numel_of
from cluster.planner.trainable import trained_numel
from cluster.planner.training import (
    MASTER_AND_MOMENTS,
    model_bytes,
    start_bytes,
)
from common.config import Lora, RunConfig

BUCKETS_AT_ONCE = 2
"""Of a push: one is filled while the other one is sent."""
TENSORS_AT_ONCE = 3
"""A gathered parameter, what it was at the start, and what is made of both."""
MIB = 1 << 20
COPY_BANDWIDTH = 20e9
"""Bytes a second from a GPU to pinned memory, of each rank: PCIe 4.0."""
PAGEABLE_BANDWIDTH = 3e9
"""The same to memory that is not pinned and was not used before: an estimate. A gathered policy goes there."""
DISK_BANDWIDTH = 1e9
"""Bytes a second that a disk takes from all ranks."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Bytes of the fullest node, and of the run's folder.

    Attributes:
        count: of nodes.
        start: RAM while the ranks load the model.
        running: RAM at a publish, without shared memory.
        saving: the same while a checkpoint with its policy is written.
        object_store, shared_memory: at a publish; the second holds the first.
        checkpoint, policy: of one of them on disk.
        disk: of all that a run keeps.
        copy_s, write_s: seconds that a checkpoint with its policy is copied, while the steps wait, and written.
    """

    count: int
    start: float
    running: float
    saving: float
    object_store: float
    shared_memory: float
    checkpoint: float
    policy: float
    disk: float
    copy_s: float
    write_s: float


def nodes_of(
    config: RunConfig,
    shape: ModelShape,
    seats: Sequence[Seat],
    push: float,
) -> Nodes:
    """The nodes of these actors."""
    nodes = _filled(config, seats)
    start = 0.0
    running = 0.0
    saving = 0.0
    checkpoint = checkpoint_bytes(config, shape)
    policy = model_bytes(config, shape)
    share = checkpoint / config.learner.num_ranks
    object_store = 0.0
    shared_memory = 0.0
    for roles in nodes:
        by_role = {seat.role: seat for seat in seats}
        held = 0.0
        for role in roles:
            held += by_role[role].host_bytes
        num_ranks = roles.count("learner")
        num_engines = roles.count("rollout")
        at_start = num_ranks * (start_bytes(config, shape) + PROCESS_BYTES)
        if num_ranks:
            held += publisher_bytes(config, shape)
        through_ray = config.transport in ("adapter", "object_store")
        reads = num_ranks or num_engines
        stored = push if through_ray and reads else 0.0
        copied = stored if num_engines else 0.0
        start = max(start, at_start)
        running = max(running, held)
        if num_ranks:
            # The policy lies with rank 0, whether or not the steps wait until it is written.
            held += gathered_bytes(config, shape)
        if config.checkpoint.background:
            held += num_ranks * share
        saving = max(saving, held)
        object_store = max(object_store, stored)
        shared_memory = max(shared_memory, stored + copied)
    # The kept ones, the best that the oldest of them names, and the one that is written. Any of them may have been the
    # best in its time and hold a policy; the oldest has none where it names another. The last one is run.dir/policy.
    num_kept = config.checkpoint.keep
    disk = (num_kept + 2) * checkpoint + (num_kept + 1) * policy
    return Nodes(
        len(nodes),
        start,
        running,
        saving,
        object_store,
        shared_memory,
        checkpoint,
        policy,
        disk,
        copy_s=share / COPY_BANDWIDTH + policy / PAGEABLE_BANDWIDTH,
        write_s=(checkpoint + policy) / DISK_BANDWIDTH,
    )


def publisher_bytes(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    """RAM of rank 0 at a publish: the gathered weights, an adapter, or buckets alone."""
    item = ITEM_BYTES[config.model.dtype]
    if config.transport in ("broadcast", "ipc"):
        largest = max(weight.numel for weight in shape.weights)
        buckets = BUCKETS_AT_ONCE * config.weights.bucket_mib * MIB
        return float(buckets + TENSORS_AT_ONCE * largest * item)
    if config.pushes_adapter:
        return float(trained_numel(config, shape) * item)
    return gathered_bytes(config, shape)


def gathered_bytes(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    """RAM of rank 0 with the whole policy: the gathered weights, and with LoRA the merged matrices beside them."""
    tuning = config.model.tuning
    num_bytes = model_bytes(config, shape)
    if isinstance(tuning, Lora):
        merged = numel_of(shape.lora_targets(tuning))
        num_bytes += merged * ITEM_BYTES[config.model.dtype]
    return num_bytes


def checkpoint_bytes(
    config: RunConfig,
    shape: ModelShape,
) -> float:
    """The learner's state over all ranks: masters and moments of the trained parameters."""
    return float(trained_numel(config, shape) * MASTER_AND_MOMENTS)


def _filled(
    config: RunConfig,
    seats: Sequence[Seat],
) -> list[list[str]]:
    """The roles on each node; without GPUs there is one node."""
    nodes: list[list[str]] = [[]]
    free = float(config.cluster.gpus_per_node)
    for role, gpus in _actors(config, seats):
        if gpus > free:
            nodes.append([])
            free = float(config.cluster.gpus_per_node)
        nodes[-1].append(role)
        free -= gpus
    return nodes


def _actors(
    config: RunConfig,
    seats: Sequence[Seat],
) -> Iterator[tuple[str, float]]:
    """Role and GPUs of every actor. Ranks that share those of an engine follow it, and take none."""
    shares = config.cluster.placement == "colocated"
    ranks_per_engine = config.learner.num_ranks // config.rollout.num_workers
    for seat in seats:
        if shares and seat.role == "learner":
            continue
        for _ in range(seat.count):
            yield seat.role, seat.gpus
            if shares and seat.role == "rollout":
                yield from [("learner", 0.0)] * ranks_per_engine

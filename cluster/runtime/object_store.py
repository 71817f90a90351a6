"""The size of a local cluster's object store: a push of weights that it cannot hold goes over the disk, much slower."""

from __future__ import annotations

import logging
import shutil

from common.config import RunConfig
from common.machine import held_files

log = logging.getLogger("sightline")

LEAST = 512 << 20
BESIDE_PUSHES = 256 << 20
"""Pairs, prompts and answers on their way."""
MIB = 1 << 20


def push_bytes_of(config: RunConfig) -> float:
    """Bytes that one weight push takes in the store.

    0 for a push in buckets, and where the planner does not know the model, which `check_fits` says.
    """
    from cluster.planner.plan import cached_shape
    from cluster.planner.shape import Unplanned
    from cluster.planner.work import push_bytes

    if config.transport in ("broadcast", "ipc"):
        return 0.0
    try:
        return push_bytes(config, cached_shape(config.model.path))
    except Unplanned:
        return 0.0


def wanted_bytes(push: float) -> int:
    """Room for two pushes: one may still be read while the next one is written."""
    return max(LEAST, int(2 * push) + BESIDE_PUSHES)


def store_bytes(push: float, num_engines: int, free: float) -> int:
    """The size that shared memory allows, with one warning where that is too little for a push.

    Args:
        push: bytes of one.
        num_engines: on this machine; all take a push from one copy in shared memory.
        free: bytes of shared memory.
    """
    wanted = wanted_bytes(push)
    copied = int(push) if num_engines else 0
    left = int(free) - copied
    needed = int(push) + BESIDE_PUSHES
    if push and left < needed:
        in_all = needed + copied
        log.warning(
            "shared memory: expected %d MiB free in %s for weight pushes of %d MiB to %d engines, got %d MiB; they "
            "go over the disk or fail; enlarge it (docker: --shm-size)",
            in_all // MIB,
            held_files.SHARED_MEMORY,
            int(push) // MIB,
            num_engines,
            int(free) // MIB,
        )
    return max(LEAST, min(wanted, left))


def free_shared_memory() -> float:
    """Bytes; none where the system has no shared memory."""
    try:
        return float(shutil.disk_usage(held_files.SHARED_MEMORY).free)
    except OSError:
        return 0.0

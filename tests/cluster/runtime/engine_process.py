"""An engine's part in a push in a process of its own, which can be killed or stopped in the middle of it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.local_calls import LocalCalls, values_of
from common.machine import held_files
from common.protocols import Tensors
from common.records import LoadReport, WeightManifest

PATIENCE_S = 1.0


class EngineProcess(LocalCalls):
    """A handle of it.

    Args:
        shared_memory: in place of /dev/shm.
        fault: a signal that it sends to itself while it writes the copy of its node; None for none.
    """

    def __init__(self, shared_memory: Path, fault: signal.Signals | None) -> None:
        # One import for all: a process of torch takes seconds to start.
        context = get_context("forkserver")
        context.set_forkserver_preload(["actors.weights.sender"])
        self._pool = ProcessPoolExecutor(
            1,
            context,
            _prepare,
            (shared_memory, fault),
        )

    async def start(self) -> int:
        """The process's id, once it has imported what it needs."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, os.getpid)

    async def _run(self, method: str, args: Sequence[Any]) -> Any:
        assert method == "load"
        values = await values_of(args)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, _load, *values)

    def close(self) -> None:
        self._pool.shutdown()


def _prepare(shared_memory: Path, fault: signal.Signals | None) -> None:
    import actors.weights.sender

    held_files.SHARED_MEMORY = shared_memory
    if fault is None:
        return

    def save_half(tensors: Tensors, path: Path) -> None:
        path.write_bytes(b"half of it")
        os.kill(os.getpid(), fault)

    # A process of its own: nobody has to undo this.
    vars(actors.weights.sender)["save_file"] = save_half


def _load(manifest: WeightManifest, tensors: Tensors) -> LoadReport:
    from actors.weights.sender import read_weights, shared_weights

    with shared_weights(manifest, tensors, PATIENCE_S) as folder:
        values = dict(read_weights(folder))
        assert values["weight"].sum().item() == 1000
    return LoadReport(manifest.version, None, 0.0)

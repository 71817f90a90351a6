"""A node that leaves under a worker, and one that joins: a process of its own, since it starts Ray.

python -m tests.cluster.supervision.leaving FOLDER
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from cluster.placement.bundles import Bundle
from cluster.runtime.ray_runtime import RayRuntime
from cluster.supervision.restarts import Restarts
from cluster.supervision.supervisor import Supervisor
from common.config import Cluster
from common.protocols import Handle

OPTIONS = {"num_cpus": 2, "object_store_memory": 80 << 20}
BUNDLES = [Bundle("worker/0", 2, 0, "a worker"), Bundle("worker/1", 2, 0, "a worker")]


class Worker:
    """Says where it is."""

    def generate(self) -> str:
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return node


class Diary:
    is_told = False

    def restart(self, name: str, cause: str, log: str, seconds: float) -> None:
        print(json.dumps({"name": name, "cause": cause}), flush=True)
        self.is_told = True


async def scenario(nodes: Any, runtime: RayRuntime, second: Any, folder: Path) -> None:
    diary = Diary()
    supervisor = Supervisor(runtime, Restarts(5), 10, 60, diary, folder)

    async def revive(handle: Handle) -> None:
        await handle.call("generate")

    seats = []
    for bundle in BUNDLES:
        spawn = partial(runtime.spawn, Worker, name=bundle.name, num_cpus=2, num_gpus=0)
        seats.append(supervisor.seat(bundle.name, spawn, revive))
    async with supervisor.watching():
        before = await asyncio.gather(*[seat.call("generate") for seat in seats])
        (lost,) = [
            seat
            for seat, node in zip(seats, before, strict=True)
            if node == second.node_id
        ]
        await asyncio.to_thread(nodes.remove_node, second, False)
        left_at = time.monotonic()
        # Its process may live a little longer than its node.
        await lost.until_down()
        # Whoever asks it meanwhile is answered by the other.
        elsewhere = await lost.ask("generate", (), 60, "worker")
        seconds = time.monotonic() - left_at
        # In the main thread: Ray sets handlers of signals.
        third = nodes.add_node(**OPTIONS)
        # It is up a little before that is written down.
        while not diary.is_told:
            await asyncio.sleep(0.1)
        after = await lost.call("generate")
    outcome = {
        "answered_by_the_other": elsewhere in before and elsewhere != second.node_id,
        "is_on_the_new_node": after == third.node_id,
        "answered_after_s": seconds,
        "back_after_s": time.monotonic() - left_at,
    }
    print(json.dumps(outcome), flush=True)


def main(folder: Path) -> None:
    from ray.cluster_utils import Cluster as Nodes

    logging.basicConfig(format="%(message)s")
    nodes = Nodes(
        initialize_head=True, head_node_args={**OPTIONS, "include_dashboard": False}
    )
    second = nodes.add_node(**OPTIONS)
    runtime = RayRuntime(Cluster(address=nodes.address), BUNDLES)
    try:
        asyncio.run(scenario(nodes, runtime, second, folder))
    finally:
        runtime.shutdown()
        nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

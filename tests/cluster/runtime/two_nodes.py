"""Two nodes of eight logical GPUs on this machine, and runs that reserve them: a process each.

python -m tests.cluster.runtime.two_nodes serve | place ADDRESS | hold ADDRESS WORDS… | want ADDRESS LIMIT_S WORDS…
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Sequence

from cluster.placement.bundles import Bundle, plan
from cluster.placement.topology import slots_of
from cluster.runtime.ray_runtime import RayRuntime
from common.config import Cluster
from common.config.overrides import load_config
from common.errors import UserError

GPUS_PER_NODE = 8
STARTED = {
    "8 ranks, 8 engines": ("reward/0",),
    "12 ranks, 2 engines of 2": ("rollout/0",),
    "8 ranks, 4 engines, judge of 4": ("rollout/1", "judge/0"),
    "colocated 8": ("rollout/1", "learner/1"),
    "colocated, 4 engines of 2": ("rollout/0", "learner/1"),
}
"""Actors that are started to see which GPUs they get; of all others the reservation tells the node."""
JUDGE = (
    "--reward.judge.kind=vlm",
    "--reward.judge.path=judge",
    "--reward.judge.num_gpus=4",
    "--reward.judge.engine.tensor_parallel_size=4",
)


def run_of(*words: str) -> tuple[str, ...]:
    """Words of a run on GPUs."""
    return (
        "--mixture.online_fraction=1",
        "--learner.global_batch=24",
        "--learner.num_gpus=1",
        "--rollout.num_gpus=1",
        "--reward.num_cpus=1",
        *words,
    )


def split(num_gpus: int) -> tuple[str, str]:
    """Words of engines over several GPUs."""
    return (
        f"--rollout.num_gpus={num_gpus}",
        f"--rollout.engine.tensor_parallel_size={num_gpus}",
    )


RUNS = {
    "8 ranks, 8 engines": run_of("--learner.num_ranks=8", "--rollout.num_workers=8"),
    "12 ranks, 2 engines of 2": run_of(
        "--learner.num_ranks=12", "--rollout.num_workers=2", *split(2)
    ),
    "8 ranks, 4 engines, judge of 4": run_of(
        "--learner.num_ranks=8", "--rollout.num_workers=4", *JUDGE
    ),
    "colocated 8": run_of(
        "--learner.num_ranks=8",
        "--rollout.num_workers=8",
        "--cluster.placement=colocated",
    ),
    "colocated, 4 engines of 2": run_of(
        "--learner.num_ranks=8",
        "--rollout.num_workers=4",
        *split(2),
        "--cluster.placement=colocated",
    ),
}


class Worker:
    """An actor that says where it is."""

    def where(self) -> tuple[str, str]:
        """Its node and its GPUs."""
        import os

        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return node, os.environ.get("CUDA_VISIBLE_DEVICES", "all")


def bundles_of(words: Sequence[str]) -> list[Bundle]:
    return plan(load_config(None, list(words)))


def serve() -> None:
    """Keep the cluster until standard input ends."""
    from ray.cluster_utils import Cluster as Nodes

    options = {
        "num_cpus": 64,
        "num_gpus": GPUS_PER_NODE,
        "object_store_memory": 80 << 20,
    }
    nodes = Nodes(
        initialize_head=True, head_node_args={**options, "include_dashboard": False}
    )
    nodes.add_node(**options)
    print(json.dumps(nodes.address), flush=True)
    sys.stdin.read()
    nodes.shutdown()


def place(address: str) -> None:
    """Reserve every run of `RUNS` after another; says on which node each actor is."""
    placed = {}
    for name, words in RUNS.items():
        bundles = bundles_of(words)
        runtime = RayRuntime(Cluster(address=address), bundles)
        try:
            placed[name] = {
                "nodes": nodes_of(bundles),
                "started": asyncio.run(started(runtime, bundles, STARTED[name])),
            }
        finally:
            runtime.shutdown()
    print(json.dumps(placed))


def nodes_of(bundles: Sequence[Bundle]) -> dict[str, str]:
    """Actor -> node, as Ray holds it."""
    import ray

    groups = ray.util.placement_group_table().values()
    (group,) = [group for group in groups if group["state"] == "CREATED"]
    nodes = {}
    for index, slot in enumerate(slots_of(bundles)):
        for bundle in slot.bundles:
            nodes[bundle.name] = group["bundles_to_node_id"][index]
    return nodes


async def started(
    runtime: RayRuntime, bundles: Sequence[Bundle], names: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """Actor -> its node and GPUs, as it sees them."""
    handles = {}
    # Engines first: a rank that shares GPUs is told those of its engine.
    for bundle in bundles:
        if bundle.name in names:
            handles[bundle.name] = runtime.spawn(
                Worker,
                name=bundle.name,
                num_cpus=bundle.num_cpus,
                num_gpus=bundle.num_gpus,
            )
    answers = [handle.call("where") for handle in handles.values()]
    return dict(zip(handles, await asyncio.gather(*answers), strict=True))


def want(address: str, limit_s: float, words: Sequence[str], holds: bool) -> None:
    """Reserve one run; says so, or what is in its way."""
    logging.basicConfig(format="%(message)s")
    config = Cluster(address=address, start_timeout_s=limit_s)
    owner = "the first run" if holds else "the second run"
    try:
        runtime = RayRuntime(config, bundles_of(words), owner)
    except UserError as error:
        print(json.dumps(str(error)), flush=True)
        return
    print(json.dumps("reserved"), flush=True)
    if holds:
        sys.stdin.read()
    runtime.shutdown()


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "serve":
        serve()
    elif command == "place":
        place(rest[0])
    elif command == "hold":
        want(rest[0], 60.0, rest[1:], holds=True)
    else:
        want(rest[0], float(rest[1]), rest[2:], holds=False)

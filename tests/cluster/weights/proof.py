"""Two ZeRO-3 ranks, an engine of one worker and one of two, on a cluster of two nodes: `python -m … OUT [ADDRESS]`.

A process of its own: one that has loaded models could not fork Ray's. Writes OUT/proof.json. With an address it takes
the cluster that is there: `bash tests/cluster/weights/two_namespaces.sh OUT` starts one whose nodes have a network
each.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from actors.rollout import RolloutWorker
from cluster.placement.bundles import plan
from cluster.run.turns import Turns
from cluster.runtime.clients import LearnerClient, RolloutClient, Workers
from cluster.runtime.ray_runtime import RayRuntime
from cluster.weights.transport import transport_of
from common.config import Cluster, RunConfig
from common.data.images import ImageStore
from common.protocols import GenerationRequest
from common.push.meeting import Meeting
from common.push.plan import PushPlan
from common.records import LoadReport
from learner.learner import Learner
from tests.learner.helpers import make_pairs
from tests.probes import one_answer
from tests.tiny_models import make_prompt, tiny_llava

MAX_LENGTH = 256
NUM_TOKENS = 12
LIMIT_S = 300.0
"""The start of two engines and two ranks took 200 s of two slow cores that had another test as well."""
SEEDS = range(3)


def config_of(out: Path, split: int) -> RunConfig:
    """A run of two ranks and two engines, whose engines have so many workers."""
    return RunConfig.model_validate(
        {
            "run": {"dir": str(out / "run")},
            "model": {"path": str(tiny_llava()), "max_length": MAX_LENGTH},
            "mixture": {"online_fraction": 1.0},
            "rollout": {
                "num_workers": 2,
                "num_cpus": 1,
                "engine": {"tensor_parallel_size": split, "block_size": 32},
            },
            "learner": {
                "num_ranks": 2,
                "num_cpus": 1,
                "zero_stage": 3,
                "global_batch": 4,
                "micro_batch": 2,
                "num_steps": 20,
                "optimizer": {"lr": 1e-3, "warmup_steps": 2},
            },
            # Both nodes are on one machine, which would share its memory.
            "weights": {"wire": "gloo", "bucket_mib": 1, "timeout_s": 60},
            "loop": {"call_timeout_s": LIMIT_S},
        }
    )


class Worker(RolloutWorker):
    """Can be killed, and says which push it has begun to take."""

    receiving = 0

    def pid(self) -> int:
        return os.getpid()

    def version_in_receive(self) -> int:
        return self.receiving

    async def receive(
        self, version: int, plan: PushPlan, meeting: Meeting, first_rank: int
    ) -> LoadReport:
        self.receiving = version
        return await super().receive(version, plan, meeting, first_rank)


def requests_about(store: ImageStore) -> list[GenerationRequest]:
    requests = []
    for seed in SEEDS:
        prompt = make_prompt(store, seed)
        requests.append(GenerationRequest(f"{seed}", prompt, 1, 0.0, NUM_TOKENS))
    return requests


class Proof:
    """The cluster, its actors, and what came out."""

    def __init__(self, runtime: RayRuntime, out: Path) -> None:
        self._out = out
        self._store = ImageStore(out / "images")
        self._requests = requests_about(self._store)
        self._runtime = runtime
        config = config_of(out, 1)
        engines = []
        for index, split in enumerate((1, 2)):
            worker_config = config_of(out, split)
            handle = self._spawn(f"rollout/{index}", Worker, worker_config, index)
            engines.append(RolloutClient(handle, LIMIT_S))
        ranks = []
        for rank in range(2):
            ranks.append(self._spawn(f"learner/{rank}", Learner, config, rank, 2))
        self.engines = engines
        self.learner = LearnerClient(ranks, LIMIT_S)
        self.workers = Workers(engines, [], self.learner)
        turns = Turns(config.cluster, self.workers)
        self.transport = transport_of(config, self.learner, turns)

    def _spawn(self, name: str, worker: type, *args: Any) -> Any:
        return self._runtime.spawn(worker, *args, name=name, num_cpus=1, num_gpus=0)

    async def run(self) -> dict[str, Any]:
        await self.workers.start()
        pairs = make_pairs(self._store, 8)
        prompt = make_prompt(self._store, 9)
        await self.learner.set_probe(one_answer(prompt, (300, 301, 302)))
        await self.learner.step(1, pairs[:4])

        both = await self.transport.deliver(1, self.engines)
        both.check()
        await self.learner.export(self._out / "policy")
        outcome: dict[str, Any] = {
            "checksum": both.manifest.checksum,
            "probe_errors": [report.probe_error for report in both.reports],
            "pauses": [report.pause_s for report in both.reports],
            "tokens": [await self._tokens(engine) for engine in self.engines],
        }
        # An engine alone, as after a restart.
        alone = await self.transport.deliver(2, self.engines[:1])
        alone.check()
        await self.learner.step(2, pairs[4:])
        outcome |= await self._killed()
        return outcome

    async def _tokens(self, engine: RolloutClient) -> list[Any]:
        groups: list[Any] = await engine.generate(self._requests)
        return [group.completions[0].token_ids for group in groups]

    async def _killed(self) -> dict[str, Any]:
        """Kill the second engine's worker in the middle of a push."""
        survivor, victim = self.engines
        pid = await victim.handle.call("pid")
        delivery = asyncio.create_task(self.transport.deliver(3, self.engines))
        while (
            await victim.handle.call("version_in_receive") < 3 and not delivery.done()
        ):
            await asyncio.sleep(0.001)
        begun = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        delivered = await delivery
        return {
            "seconds": time.monotonic() - begun,
            "survivors": [report.version for report in delivered.reports],
            "failures": [str(error)[:300] for _, error in delivered.failures],
            "is_victim": [engine is victim for engine, _ in delivered.failures],
            "answers": len(await self._tokens(survivor)),
        }


def prove(out: Path, address: str) -> None:
    """On the cluster at this address."""
    runtime = RayRuntime(Cluster(address=address), plan(config_of(out, 1)))
    try:
        outcome = asyncio.run(Proof(runtime, out).run())
        (out / "proof.json").write_text(json.dumps(outcome))
    finally:
        runtime.shutdown()


def main(out: Path) -> None:
    from ray.cluster_utils import Cluster as Nodes

    options = {"num_cpus": 4, "object_store_memory": 80 << 20}
    nodes = Nodes(
        initialize_head=True, head_node_args={**options, "include_dashboard": False}
    )
    nodes.add_node(**options)
    try:
        prove(out, nodes.address)
    finally:
        nodes.shutdown()


if __name__ == "__main__":
    # An address is that of a cluster which somebody else has started.
    folder, *addresses = sys.argv[1:]
    if addresses:
        prove(Path(folder), addresses[0])
    else:
        main(Path(folder))

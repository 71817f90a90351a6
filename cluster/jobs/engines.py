"""The engines of a generating job: rollout workers on Ray, or in tests anything that answers requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

from actors.bdhs.sampling import Generate
from cluster.runtime.clients import RolloutClient
from common.config.jobs import GenerateConfig
from common.protocols import Handle
from common.records import Prompt

CountImageTokens: TypeAlias = Callable[[Prompt], int]
Engines: TypeAlias = Callable[
    [GenerateConfig],
    AbstractAsyncContextManager[tuple[list[Generate], CountImageTokens]],
]
"""Starts the engines; gives one `generate` per worker, and the number of image tokens of a prompt."""


@asynccontextmanager
async def ray_engines(
    config: GenerateConfig,
) -> AsyncIterator[tuple[list[Generate], CountImageTokens]]:
    """Start rollout workers as Ray actors. Image tokens are counted in this process."""
    from actors.image_tokens import ImageTokenCounter
    from actors.rollout import RolloutWorker
    from cluster.placement.bundles import rollout_bundles
    from cluster.runtime.ray_runtime import RayRuntime
    from cluster.runtime.shared_files import SharedFiles
    from common.chat import check_model
    from common.chat.families import check_bdhs, check_cpu_engines

    # Before Ray starts: what is wrong with the model directory is said at once.
    encoder = check_model(config.model)
    rollout = config.rollout
    check_bdhs(encoder, rollout.bdhs)
    if not rollout.num_gpus:
        check_cpu_engines(encoder, config.model)
    bundles = list(rollout_bundles(config))
    runtime = RayRuntime(config.cluster, bundles, "generate")
    try:
        limit_s = config.loop.call_timeout_s
        # Where the pictures are.
        model = {config.model.path: "model.path"}
        files = SharedFiles("--out", config.generate.out, model)
        await files.check_nodes(runtime, limit_s)
        clients: list[RolloutClient] = []
        handles: dict[str, Handle] = {}
        for index in range(rollout.num_workers):
            name = f"rollout/{index}"
            handle = handles[name] = runtime.spawn(
                RolloutWorker,
                config,
                index,
                name=name,
                num_cpus=rollout.num_cpus,
                num_gpus=rollout.num_gpus,
            )
            clients.append(RolloutClient(handle, limit_s))
        # Side by side: an engine takes a while to start.
        starts = [client.start() for client in clients]
        await asyncio.gather(files.check(handles, limit_s), *starts)
        yield [client.generate for client in clients], ImageTokenCounter(encoder)
        stops = [client.close() for client in clients]
        await asyncio.gather(*stops)
    finally:
        runtime.shutdown()

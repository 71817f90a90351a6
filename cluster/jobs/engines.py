"""The engines of a generating job: rollout workers on Ray, or in tests anything that answers requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

from actors.bdhs.sampling import Generate
from cluster.runtime.clients import RolloutClient
from common.config import RunConfig
from common.records import Prompt

CountImageTokens: TypeAlias = Callable[[Prompt], int]
Engines: TypeAlias = Callable[
    [RunConfig], AbstractAsyncContextManager[tuple[list[Generate], CountImageTokens]]
]
"""Starts the engines; gives one `generate` per worker, and the number of image tokens of a prompt."""


@asynccontextmanager
async def ray_engines(
    config: RunConfig,
) -> AsyncIterator[tuple[list[Generate], CountImageTokens]]:
    """Start rollout workers as Ray actors. Image tokens are counted in this process."""
    from actors.image_tokens import ImageTokenCounter
    from actors.rollout import RolloutWorker
    from cluster.runtime.placement import rollout_bundles
    from cluster.runtime.ray_runtime import RayRuntime
    from common.chat import check_model

    # Before Ray starts: what is wrong with the model directory is said at once.
    encoder = check_model(config.model)
    rollout = config.rollout
    bundles = list(rollout_bundles(config))
    runtime = RayRuntime(config.cluster, bundles, "generate")
    try:
        clients: list[RolloutClient] = []
        for index in range(rollout.num_workers):
            handle = runtime.spawn(
                RolloutWorker,
                config,
                index,
                name=f"rollout/{index}",
                num_cpus=rollout.num_cpus,
                num_gpus=rollout.num_gpus,
            )
            clients.append(RolloutClient(handle, config.loop.call_timeout_s))
        # Side by side: an engine takes a while to start.
        starts = [client.start() for client in clients]
        await asyncio.gather(*starts)
        yield [client.generate for client in clients], ImageTokenCounter(encoder)
        stops = [client.close() for client in clients]
        await asyncio.gather(*stops)
    finally:
        runtime.shutdown()

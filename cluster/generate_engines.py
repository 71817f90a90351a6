"""The engines of a generating job: rollout workers on Ray, or in tests anything that answers requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TypeAlias

from actors.bdhs import Generate
from common.config import RunConfig
from common.records import Prompt

Engines: TypeAlias = Callable[
    [RunConfig],
    AbstractAsyncContextManager[tuple[list[Generate], Callable[[Prompt], int]]],
]
"""Starts the engines; gives one `generate` per worker, and the number of image tokens of a prompt."""


@asynccontextmanager
async def ray_engines(
    config: RunConfig,
) -> AsyncIterator[tuple[list[Generate], Callable[[Prompt], int]]]:
    """Rollout workers as Ray actors; the counting is done here."""
    from actors.image_tokens import ImageTokenCounter
    from actors.rollout import RolloutWorker
    from cluster.ray_runtime import RayRuntime
    from common.chat import ChatEncoder

    rollout = config.rollout
    runtime = RayRuntime(config.cluster)
    try:
        handles = [
            runtime.spawn(
                RolloutWorker,
                config,
                index,
                name=f"rollout/{index}",
                num_cpus=rollout.num_cpus,
                num_gpus=rollout.num_gpus,
            )
            for index in range(rollout.num_workers)
        ]
        await asyncio.gather(*(handle.call("start") for handle in handles))
        count = ImageTokenCounter(
            ChatEncoder(config.model.path, config.model.max_length)
        )
        yield [partial(handle.call, "generate") for handle in handles], count
        await asyncio.gather(*(handle.call("close") for handle in handles))
    finally:
        runtime.shutdown()

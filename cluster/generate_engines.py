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

Engines: TypeAlias = Callable[[RunConfig], AbstractAsyncContextManager[tuple[list[Generate], Callable[[Prompt], int]]]]
"""Starts the engines; gives one `generate` per worker, and the number of image tokens of a prompt."""


@asynccontextmanager
async def ray_engines(config: RunConfig) -> AsyncIterator[tuple[list[Generate], Callable[[Prompt], int]]]:
    """Rollout workers as Ray actors; the counting is done here."""
    from actors.rollout import RolloutWorker
    from cluster.ray_runtime import RayRuntime

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
        yield [partial(handle.call, "generate") for handle in handles], ImageTokenCounter(config)
        await asyncio.gather(*(handle.call("close") for handle in handles))
    finally:
        runtime.shutdown()


class ImageTokenCounter:
    """How many tokens the policy sees of a prompt's (single) image. The number depends on the image's size alone."""

    def __init__(self, config: RunConfig) -> None:
        from common.chat import ChatEncoder

        self._encoder = ChatEncoder(config.model.path, config.model.max_length)
        self._known: dict[tuple[int, int], int] = {}

    def __call__(self, prompt: Prompt) -> int:
        """Raises PromptError or ImageError for a prompt that the policy cannot be given."""
        (image,) = self._encoder.load_images(prompt)
        if image.size not in self._known:
            self._known[image.size] = self._encoder.encode_prompt(prompt).num_image_tokens
        return self._known[image.size]

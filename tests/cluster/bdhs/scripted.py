"""Engines that answer by a script, and the sets that `python -m cluster.generate bdhs` makes with them."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

from actors.bdhs.sampling import Generate
from cluster.generate import config_of
from cluster.jobs.engines import Engines
from common.config import RunConfig
from common.config.jobs import BdhsJobConfig, GenerateConfig
from common.data.datasets import PAIRS, STATS, read_table
from common.data.rows import PAIR_SCHEMA
from common.protocols import GenerationRequest
from common.records import Completion, Dropped, Prompt, RolloutGroup

StartedEngines: TypeAlias = AsyncIterator[
    tuple[list[Generate], Callable[[Prompt], int]]
]
Requests: TypeAlias = list[GenerationRequest]
Results: TypeAlias = Sequence[RolloutGroup | Dropped]


def bdhs_config(words: list[str]) -> BdhsJobConfig:
    """The config of a command line that begins with `bdhs`."""
    config = config_of(words)
    assert isinstance(config, BdhsJobConfig)
    return config


class Killed(BaseException):
    """Stands for a signal: nothing between it and the process's end may catch it."""


def scripted(num_workers: int = 1, killed_at: int | None = None) -> Engines:
    """Engines whose answer depends on the request alone; call number `killed_at` never returns."""
    calls = 0

    async def generate(
        requests: Requests,
    ) -> Results:
        nonlocal calls
        calls += 1
        if calls == killed_at:
            raise Killed
        return [answer(request) for request in requests]

    @asynccontextmanager
    async def engines(
        config: RunConfig,
    ) -> StartedEngines:
        yield [generate] * num_workers, lambda prompt: 36

    return engines


def answer(request: GenerationRequest) -> RolloutGroup | Dropped:
    rng = random.Random(request.seed)
    if rng.random() < 0.1:
        return Dropped(request.id, "engine_refused")
    truth = (request.prompt.reference or "")[len(request.prefix) :]
    same = truth[: truth.index(".") + 1]
    text = rng.choice((same, same, " a ring.", " a cross at the left."))
    return answered(request, text)


def answered(request: GenerationRequest, text: str) -> RolloutGroup:
    completion = Completion((), text, 0, 0, "stop")
    return RolloutGroup(request.id, request.prompt, (), 0, (completion,))


def wrapped(engines: Engines, wrap: Callable[[Generate], Generate]) -> Engines:
    """The same engines, each worker's `generate` wrapped."""

    @asynccontextmanager
    async def wrapping(config: GenerateConfig) -> StartedEngines:
        async with engines(config) as (workers, count):
            yield [wrap(generate) for generate in workers], count

    return wrapping


def recorded(engines: Engines, prompts_of_workers: list[list[str]]) -> Engines:
    """The same engines; `prompts_of_workers` gets a list of the requests' prompts from each worker."""

    def recording(generate: Generate) -> Generate:
        prompt_ids: list[str] = []
        prompts_of_workers.append(prompt_ids)

        async def record(requests: Requests) -> Results:
            for request in requests:
                prompt_ids.append(request.prompt.id)
            # An engine takes time, so that the others get their turn.
            await asyncio.sleep(0.01)
            return await generate(requests)

        return record

    return wrapped(engines, recording)


def stats_of(config: BdhsJobConfig) -> dict[str, Any]:
    return dict(json.loads((config.generate.out / STATS).read_text()))


def rows_of(config: BdhsJobConfig) -> list[Any]:
    """The pairs as they are on disk."""
    table = read_table(config.generate.out / PAIRS, PAIR_SCHEMA)
    return list(table.to_pylist())


def line_of(out: Path, *words: str) -> list[str]:
    return ["bdhs", "--out", str(out), *words]

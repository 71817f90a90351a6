"""Engines of a run's judges: rollout workers on the judge's model that are never pushed any weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from cluster.runtime.clients import RolloutClient
from common.config import EngineEye, Model, Rollout, RunConfig
from common.config.eyes import LocalModel, engine_eyes
from common.protocols import Handle

SpawnWorker: TypeAlias = Callable[..., Handle]
"""`common.protocols.Runtime.spawn`."""


@dataclass(frozen=True, slots=True)
class JudgeSeat:
    """The place of one engine.

    Attributes:
        name: of its actor.
        index: its number among the engines of its eye.
        eye: what it runs.
    """

    name: str
    index: int
    eye: EngineEye


def judge_seats(config: RunConfig) -> Iterator[JudgeSeat]:
    """A seat for every engine that the judge of a config needs."""
    number = 0
    for eye in engine_eyes(config.reward.judge):
        for index in range(eye.num_engines):
            yield JudgeSeat(f"judge/{number}", index, eye)
            number += 1


def engine_config(config: RunConfig, eye: EngineEye) -> RunConfig:
    """The config of a rollout worker that is a judge's engine."""
    shared = set(Model.model_fields).intersection(LocalModel.model_fields)
    model = Model(**{name: getattr(eye, name) for name in shared})
    rollout = Rollout(
        deterministic=config.rollout.deterministic,
        engine=eye.engine,
        num_cpus=eye.num_cpus,
        num_gpus=eye.num_gpus,
    )
    # It samples no pairs, so it needs nothing of BDHS.
    mixture = config.mixture.model_copy(update={"online_bdhs_fraction": 0.0})
    # Its GPUs are its own.
    cluster = config.cluster.model_copy(update={"placement": "disaggregated"})
    update = {
        "cluster": cluster,
        "model": model,
        "rollout": rollout,
        "mixture": mixture,
    }
    return config.model_copy(update=update)


class JudgeEngines:
    """The engines of a judge, spawned when this is made.

    Attributes:
        clients: by the eye whose engines they are.
        handles: by the names of the actors.
    """

    def __init__(self, config: RunConfig, spawn: SpawnWorker, worker: type) -> None:
        """`spawn` is a runtime's; `worker` the class of rollout workers."""
        self.clients: dict[EngineEye, list[RolloutClient]] = {}
        self.handles: dict[str, Handle] = {}
        limit_s = config.loop.call_timeout_s
        for seat in judge_seats(config):
            eye = seat.eye
            handle = spawn(
                worker,
                engine_config(config, eye),
                seat.index,
                name=seat.name,
                num_cpus=eye.num_cpus,
                num_gpus=eye.num_gpus,
            )
            self.handles[seat.name] = handle
            client = RolloutClient(handle, limit_s, "judge's engine")
            self.clients.setdefault(eye, []).append(client)

    async def start(self) -> None:
        """Start all engines at once, and wait until they answer."""
        starts = []
        for clients in self.clients.values():
            starts += [client.start() for client in clients]
        await asyncio.gather(*starts)

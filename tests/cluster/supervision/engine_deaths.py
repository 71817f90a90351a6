"""A real engine on Ray that is killed, stopped, and orphaned: a process of its own, since it starts Ray.

Run by hand; it has not been seen to pass.

python -m tests.cluster.supervision.engine_deaths FOLDER
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from actors.rollout import RolloutWorker
from cluster.runtime.clients import RolloutClient
from cluster.runtime.placement import Bundle
from cluster.runtime.ray_runtime import RayRuntime
from cluster.supervision.restarts import Restarts
from cluster.supervision.seat import Seat
from cluster.supervision.supervisor import Supervisor
from common.config import Cluster
from common.config.overrides import load_config
from common.data.images import ImageStore
from common.protocols import GenerationRequest, Handle
from tests.tiny_models import make_prompt, tiny_llava

LIMIT_S = 6.0
CALL_LIMIT_S = 120.0
CORE = "VLLM"
ACTOR = "ray::"
BLOWS = (
    (CORE, signal.SIGKILL),
    (CORE, signal.SIGSTOP),
    (ACTOR, signal.SIGSTOP),
)
BUNDLES = [Bundle("rollout/0", 1, 0, "an engine")]


class Diary:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, float]] = []

    def restart(self, name: str, cause: str, log: str, seconds: float) -> None:
        """Keep the cause and the seconds."""
        self.entries.append((cause, seconds))


async def scenario(runtime: RayRuntime, folder: Path) -> dict[str, object]:
    """Strike the engine in several ways while it samples."""
    words = [f"--model.path={tiny_llava()}", "--mixture.online_fraction=1"]
    config = load_config(None, words)
    diary = Diary()
    supervisor = Supervisor(runtime, Restarts(9), LIMIT_S, 100, diary, folder)

    async def revive(handle: Handle) -> None:
        await RolloutClient(handle, CALL_LIMIT_S).start()

    spawn = partial(
        runtime.spawn, RolloutWorker, config, 0, name="rollout/0", num_cpus=1, num_gpus=0
    )  # fmt: skip
    begun = time.monotonic()
    seat = supervisor.seat("rollout/0", spawn, revive)
    client = RolloutClient(seat, CALL_LIMIT_S)
    await client.start()
    start_s = time.monotonic() - begun
    prompt = make_prompt(ImageStore(folder), 1)
    requests = [GenerationRequest("a", prompt, 2, 1.0, 200, seed=5)] * 8
    num_groups = 0
    async with supervisor.watching():
        for number, (name, blow) in enumerate(BLOWS):
            answering = asyncio.ensure_future(client.generate(requests))
            await asyncio.sleep(0.05)
            strike(seat, name, blow)
            num_groups += len(await answering)
            while len(diary.entries) <= number or not core_of(seat):
                await asyncio.sleep(0.1)
    assert seat.last_pulse is not None
    return {
        "start_s": start_s,
        "restarts": diary.entries,
        "num_groups": num_groups,
        "processes": [process.pid for process in seat.last_pulse.processes],
    }


def core_of(seat: Seat) -> bool:
    """Whether the last pulse has seen the engine's core."""
    pulse = seat.last_pulse
    names = [] if pulse is None else [process.name for process in pulse.processes]
    return any(name.startswith(CORE) for name in names)


def strike(seat: Seat, name: str, number: int) -> None:
    """Send a signal to one of the worker's processes."""
    assert seat.last_pulse is not None
    for process in seat.last_pulse.processes:
        if process.name.startswith(name):
            os.kill(process.pid, number)


def main(folder: Path) -> None:
    """Print what came of it, and wait to be killed."""
    logging.basicConfig(format="%(message)s")
    runtime = RayRuntime(Cluster(), BUNDLES)
    print(json.dumps(asyncio.run(scenario(runtime, folder))), flush=True)
    # Nobody shuts anything down.
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""An engine that dies or hangs in the middle of a push is found within the call's limit, and the others finish."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.runtime.clients import RolloutClient
from common.records import LoadReport, WeightManifest
from common.weights import checksum
from tests.cluster.runtime.engine_process import EngineProcess

LIMIT_S = 10.0
FAULTS = {signal.SIGKILL: "terminated abruptly", signal.SIGSTOP: "got no answer within"}


async def _ready(value: Any) -> Any:
    return value


async def _push(
    engines: list[EngineProcess], shared_memory: Path
) -> tuple[list[Any], float]:
    """What became of a push to each engine, and the seconds that it took.

    The first engine begins to write for all before the others are asked.
    """
    ids = await asyncio.gather(*[engine.start() for engine in engines])
    tensors = {"weight": np.ones(1000, np.float32)}
    manifest = WeightManifest(7, checksum(tensors), 1, 4000, 1.0)
    loads = []
    started = time.monotonic()
    for engine in engines:
        client = RolloutClient(engine, LIMIT_S)
        references = [
            asyncio.ensure_future(_ready(part)) for part in (manifest, tensors)
        ]
        loads.append(asyncio.create_task(client.load(*references)))
        while not list(shared_memory.rglob("*.safetensors")):
            await asyncio.sleep(0.01)
    outcomes = await asyncio.gather(*loads, return_exceptions=True)
    seconds = time.monotonic() - started
    for id in ids:
        # One that is stopped would never end.
        with suppress(ProcessLookupError):
            os.kill(id, signal.SIGKILL)
    return outcomes, seconds


@pytest.mark.real
@pytest.mark.parametrize("fault", FAULTS, ids=["dies", "hangs"])
def test_the_others_finish_and_the_faulty_one_is_named(
    fault: signal.Signals, tmp_path: Path
) -> None:
    engines = [EngineProcess(tmp_path, fault)]
    engines += [EngineProcess(tmp_path, None) for _ in range(2)]
    (failed, *others), seconds = asyncio.run(_push(engines, tmp_path))
    assert seconds < 2 * LIMIT_S
    for engine in engines:
        engine.close()
    assert isinstance(failed, Exception)
    assert FAULTS[fault] in str(failed)
    assert others == [LoadReport(7, None, 0.0)] * 2
    # The engines that live have cleaned up behind themselves, and behind the dead one.
    if fault == signal.SIGKILL:
        assert not list(tmp_path.iterdir())

"""On a GPU an engine that sleeps gives its memory to whoever shares the GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.engine.factory import make_engine
from common.config import EngineOptions, Model, Rollout
from common.data.images import ImageStore
from tests.actors.engines import Run, seeded_requests
from tests.actors.hf_policy import HfPolicy

pytestmark = [pytest.mark.real, pytest.mark.gpu]
CACHE = 2 << 30


def used_bytes() -> int:
    """Of the GPU, by all processes."""
    free, total = torch.cuda.mem_get_info()
    return total - free


@pytest.mark.parametrize("level", [1, 2])
def test_memory_is_free_while_the_engine_sleeps(
    policy_path: Path, store: ImageStore, run: Run, level: int
) -> None:
    options = EngineOptions(kv_cache_bytes=CACHE)
    rollout = Rollout(num_gpus=1, engine=options)
    requests = seeded_requests(store, range(4), 2, 8)

    async def scenario() -> None:
        model = Model(path=str(policy_path), max_length=256)
        engine = make_engine(model, rollout, timeout_s=120, sleeps=True)
        try:
            before = await engine.generate(requests)
            awake = used_bytes()
            await engine.sleep(level)
            assert awake - used_bytes() > 0.9 * CACHE
            await engine.wake()
            if level == 2:
                # Its weights are gone.
                publication = HfPolicy(policy_path, 256).publish(1)
                await engine.load_weights(*publication)
            texts = [group.completions[0].text for group in before]
            after = await engine.generate(requests)
            assert [group.completions[0].text for group in after] == texts
        finally:
            await engine.close()

    run(scenario())

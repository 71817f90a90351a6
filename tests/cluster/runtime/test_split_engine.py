"""An engine over two devices: in one reservation of Ray, with the tokens of a whole engine, and pushed to alike."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.rollout import RolloutWorker
from cluster.placement.bundles import plan
from cluster.runtime.ray_runtime import RayRuntime
from common.config import Cluster, RunConfig
from common.data.images import ImageStore
from common.protocols import GenerationRequest, Handle
from tests.actors.hf_policy import HfPolicy
from tests.tiny_models import make_prompt, tiny_llava

pytestmark = [pytest.mark.real, pytest.mark.long]
MAX_LENGTH = 256


class TwoLogicalGpus(RayRuntime):
    """A local cluster that counts two GPUs, whatever the machine has."""

    def _init(self, **options: Any) -> None:
        super()._init(num_cpus=4, num_gpus=2, **options)


def config_of(split: int, num_gpus: float) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"path": str(tiny_llava()), "max_length": MAX_LENGTH},
            "rollout": {
                # The whole one runs in its worker's process, which starts sooner.
                "deterministic": split == 1,
                "num_gpus": num_gpus,
                "engine": {"tensor_parallel_size": split, "block_size": 32},
            },
            "learner": {"num_cpus": 0},
            "mixture": {"online_fraction": 1.0},
        }
    )


@pytest.fixture
def runtime() -> Iterator[RayRuntime]:
    bundles = plan(config_of(2, 2))
    runtime = TwoLogicalGpus(Cluster(), bundles)
    yield runtime
    runtime.shutdown()


def requests_about(store: ImageStore) -> list[GenerationRequest]:
    requests = []
    for seed in range(3):
        prompt = make_prompt(store, seed)
        sampled = GenerationRequest(f"{seed}", prompt, 2, 1.0, 12, seed=seed)
        requests.append(sampled)
    return requests


def tokens_of(groups: list[Any]) -> list[tuple[int, ...]]:
    return [answer.token_ids for group in groups for answer in group.completions]


def test_two_parts_sample_and_learn_as_one(runtime: RayRuntime, tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    requests = requests_about(store)
    hf = HfPolicy(tiny_llava(), MAX_LENGTH)
    hf.perturb(3)
    manifest, arrays = hf.publish(1, make_prompt(store, 9))

    def spawn(split: int, num_gpus: float, name: str) -> Handle:
        worker_config = config_of(split, num_gpus)
        return runtime.spawn(
            RolloutWorker,
            worker_config,
            0,
            name=name,
            num_cpus=1,
            num_gpus=num_gpus,
        )

    async def both(method: str, *arguments: Any) -> list[Any]:
        calls = [handle.call(method, *arguments) for handle in (split, whole)]
        return list(await asyncio.gather(*calls))

    split = spawn(2, 2, "rollout/0")
    whole = spawn(1, 0, "whole")

    async def scenario() -> tuple[list[Any], list[Any], list[Any]]:
        await both("start")
        before = await both("generate", requests)
        # The probe shows that both parts have the new weights.
        reports = await both("load", manifest, arrays)
        after = await both("generate", requests)
        await both("close")
        return before, reports, after

    before, reports, after = asyncio.run(scenario())
    assert tokens_of(before[0]) == tokens_of(before[1])
    assert tokens_of(after[0]) == tokens_of(after[1])
    assert tokens_of(after[0]) != tokens_of(before[0])
    assert all(report.probe_error < 1e-4 for report in reports)

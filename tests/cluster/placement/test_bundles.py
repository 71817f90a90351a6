"""Set-ups that cannot work are named before anything starts."""

from pathlib import Path

import pytest

from cluster.placement.bundles import Bundle, describe, plan
from cluster.runtime.ray_runtime import RayRuntime
from common.config import Cluster
from common.config.overrides import load_config
from common.errors import UserError


@pytest.mark.real
def test_a_gpu_that_is_not_there_is_named_before_anything_starts() -> None:
    with pytest.raises(
        UserError,
        match=r"expected 99 GPUs for 1 actors, got \d+ in the cluster; lower rollout",
    ):
        RayRuntime(Cluster(), [Bundle("rollout/0", 1, 99, "vLLM engine")])


@pytest.mark.real
def test_a_cluster_that_is_not_there_is_named() -> None:
    with pytest.raises(
        UserError, match=r"expected a running Ray cluster at 127\.0\.0\.1:1, got"
    ) as error:
        RayRuntime(Cluster(address="127.0.0.1:1"))
    assert "\n" not in str(error.value)


def test_the_placement_map_adds_up() -> None:
    words = [
        "--mixture.online_fraction=1",
        "--rollout.num_workers=2",
        "--rollout.num_gpus=1",
        "--reward.num_gpus=0.5",
        "--learner.num_ranks=4",
    ]
    config = load_config(None, words)
    bundles = plan(config)
    on_gpu = [bundle.name for bundle in bundles if bundle.num_gpus]
    assert on_gpu == ["rollout/0", "rollout/1", "reward/0"]
    total = describe(bundles).splitlines()[-1]
    assert total.split() == ["total", "6", "2.5", "7", "actors"]


def test_shared_gpus_are_counted_once() -> None:
    words = [
        "--mixture.online_fraction=1",
        "--cluster.placement=colocated",
        "--rollout.num_workers=2",
        "--rollout.num_gpus=2",
        "--rollout.engine.tensor_parallel_size=2",
        "--learner.num_ranks=4",
        "--learner.num_gpus=1",
    ]
    bundles = plan(load_config(None, words))
    shared = {bundle.name: bundle.beside for bundle in bundles if bundle.beside}
    assert shared == {
        "learner/0": "rollout/0",
        "learner/1": "rollout/0",
        "learner/2": "rollout/1",
        "learner/3": "rollout/1",
    }
    *_, last, total = describe(bundles).splitlines()
    assert last.endswith("ZeRO 0, shares the GPUs of rollout/1")
    assert total.split() == ["total", "6", "4", "7", "actors"]


def test_the_papers_larger_judge_has_gpus_of_its_own() -> None:
    config = load_config(Path("cluster/configs/llava16_7b_judged.toml"))
    bundles = {bundle.name: bundle for bundle in plan(config)}
    assert bundles["judge/0"].num_gpus == 2
    assert bundles["judge/0"].holds.endswith("llava-v1.6-34b-hf")
    assert bundles["reward/0"].num_gpus == 0
    assert sum(bundle.num_gpus for bundle in bundles.values()) == 8

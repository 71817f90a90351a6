"""Two DeepSpeed ranks on gloo against one: the same loss curve, the same weights, the same refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.checkpoint.files import tensor_shapes
from common.data.images import ImageStore
from tests.learner.helpers import assert_same_weights
from tests.learner.memory_worker import BUCKET_BYTES
from tests.learner.rank_processes import spawn, spawn_cases
from tests.learner.rank_worker import NUM_STEPS
from tests.tiny_models import TinyLlava, tiny_llava

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1500)]
CURVES = (
    "loss",
    "grad_norm",
    "tokens",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "lr",
)


def case(
    name: str,
    zero_stage: int = 0,
    tuning: str = "full",
    **learner: Any,
) -> dict[str, Any]:
    return {
        "name": name,
        "tuning": tuning,
        "learner": {"zero_stage": zero_stage, **learner},
    }


STAGES = {
    "full": (0, 1, 2, 3),
    "lora": (0, 3),
    "full+povid": (3,),
    "full+mdpo+mpo": (2,),
    "lora+mdpo+mpo": (3,),
}
"""Tuning and losses -> the ZeRO stages that they are run on."""
OTHER_STAGES = {
    "lora": (2,),
    "full+povid": (0, 2),
    "lora+povid": (2, 3),
}
"""Each stage, tuning and loss of these is in those above, but not together; a case takes both cores ten seconds."""


def cases_of(stages_of: dict[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    cases = []
    for tuning, stages in stages_of.items():
        for stage in stages:
            one = case(f"{tuning}/stage-{stage}", stage, tuning)
            # The only one: a rank's first worker takes seconds to start.
            one["learner"]["input_workers"] = int(tuning == "lora+mdpo+mpo")
            cases.append(one)
    return cases


def two_rank_cases() -> list[dict[str, Any]]:
    optimizer_on_cpu = case("full/stage-2,optimizer-on-cpu", 2, offload="optimizer")
    params_on_cpu = case(
        "full/stage-3,params-on-cpu",
        3,
        offload="params",
        gradient_checkpointing=True,
    )
    return [*cases_of(STAGES), optimizer_on_cpu, params_on_cpu]


TWO_RANKS = two_rank_cases()
LONG = cases_of(OTHER_STAGES)
ONE_RANK = [case(f"{tuning}/one", tuning=tuning) for tuning in STAGES]
"""What the cases of a tuning are compared with: one rank without ZeRO."""
OTHER_ONE_RANK = [
    case(f"{tuning}/one", tuning=tuning) for tuning in OTHER_STAGES.keys() - STAGES
]


def facts_of(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    """What one rank of a case wrote down."""
    text = (folder / name / f"rank_{rank}.json").read_text()
    facts: dict[str, Any] = json.loads(text)
    return facts


def weights_of(folder: Path, name: str) -> dict[str, np.ndarray]:
    """What rank 0 of a case published at its end."""
    return dict(np.load(folder / name / "weights.npz"))


@pytest.fixture(scope="module")
def trained(store: ImageStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per case with what its ranks found; all of them go through the same three processes."""
    out = tmp_path_factory.mktemp("ranks")
    for world_size, cases in ((1, ONE_RANK), (2, TWO_RANKS)):
        spawn_cases("tests.learner.rank_worker", world_size, cases, store.root, out)
    return out


@pytest.mark.parametrize("two", TWO_RANKS, ids=lambda two: two["name"])
def test_two_ranks_equal_one(trained: Path, two: dict[str, Any]) -> None:
    """Whatever the stage, against one rank without ZeRO: each step's figures, then the weights."""
    assert_equals_one(trained, two)


@pytest.mark.long
def test_two_ranks_equal_one_on_the_other_stages(
    trained: Path, store: ImageStore
) -> None:
    for world_size, cases in ((1, OTHER_ONE_RANK), (2, LONG)):
        spawn_cases("tests.learner.rank_worker", world_size, cases, store.root, trained)
    for two in LONG:
        assert_equals_one(trained, two)


def assert_equals_one(trained: Path, two: dict[str, Any]) -> None:
    name = two["name"]
    one = f"{two['tuning']}/one"
    single = facts_of(trained, one)
    first = facts_of(trained, name)
    second = facts_of(trained, name, rank=1)
    metrics = zip(single["metrics"], first["metrics"], second["metrics"], strict=True)
    for step, (alone, left, right) in enumerate(metrics):
        grounding = {key for key in alone if key.startswith("grounding/")}
        # The gate runs before checkpoints, every third step.
        assert bool(grounding) == (step in (3, 6))
        for key in {*CURVES, *grounding}:
            where = f"step {step}, {key}"
            assert left[key] == right[key], f"{where}: ranks disagree"
            assert left[key] == pytest.approx(alone[key], rel=1e-4, abs=2e-5), where
    for fact in ("trained", "dropped", "again"):
        assert first[fact] == second[fact] == single[fact], fact
    # Rank 1's loss was inf: all ranks skip.
    assert first["skipped"] == second["skipped"] == single["skipped"] == []
    assert first["change_norm"] == pytest.approx(single["change_norm"], rel=1e-4)
    assert first["probe"] == pytest.approx(single["probe"], abs=1e-4)
    assert_same_weights(weights_of(trained, name), weights_of(trained, one))


def test_the_curve_moves(trained: Path) -> None:
    """What is compared above is no constant: every step trains, and the first batch's loss has fallen at the end."""
    single = facts_of(trained, "full/one")
    losses = [metrics["loss"] for metrics in single["metrics"]]
    assert len(losses) == NUM_STEPS + 1
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert losses[-1] < 0.9 * losses[0]
    assert [len(ids) for ids in single["trained"]] == [6, 4, 6, 5, 5, 3, 6, 6]


def test_a_zero_3_push_takes_one_parameter_at_a_time(
    store: ImageStore,
    tmp_path: Path,
) -> None:
    """25 M parameters, 100 MB, the largest 2 MB: no rank holds more than its half of policy and reference, and a push
    takes less than two of the largest on rank 1; on rank 0, to show that the measure sees it, one copy of the model.
    """
    path = tiny_llava(TinyLlava(hidden=512, layers=6))
    # float32: 4 bytes a number.
    sizes = [4 * math.prod(shape) for shape in tensor_shapes(path).values()]
    model = sum(sizes)
    largest = max(sizes)
    assert model > 90e6
    assert model > 30 * largest
    spawn("tests.learner.memory_worker", 2, path, store.root, tmp_path)
    num_bytes = []
    for rank in range(2):
        text = (tmp_path / f"memory_{rank}.json").read_text()
        num_bytes.append(json.loads(text))
    first, second = num_bytes
    for of_rank in num_bytes:
        for kept in ("policy", "reference", "policy_after"):
            assert 0.49 * model < of_rank[kept] < 0.55 * model, kept
    assert largest <= second["push"] < 2 * largest
    assert model <= first["push"] < model + 4 * largest
    # A streamed push: what is gathered at a time of the policy and of the reference, and rank 0's two buckets.
    assert second["stream"] < 3 * largest
    assert first["stream"] < 2 * BUCKET_BYTES + 3 * largest

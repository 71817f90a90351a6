"""Two DeepSpeed ranks on gloo against one: the same loss curve, the same weights, the same refusals."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.data.images import ImageStore
from common.errors import UserError
from common.weights import checkpoint_shapes
from learner.learner import Learner
from tests.learner.helpers import assert_same_weights, run_config
from tests.learner.rank_worker import NUM_STEPS
from tests.tiny_models import TinyLlava, tiny_llava

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).resolve().parents[3]
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


TWO_RANKS = [
    *(case(f"full/stage-{stage}", stage) for stage in range(4)),
    case("full/stage-2,optimizer-on-cpu", 2, offload="optimizer"),
    case(
        "full/stage-3,params-on-cpu", 3, offload="params", gradient_checkpointing=True
    ),
    *(case(f"lora/stage-{stage}", stage, "lora") for stage in (0, 2, 3)),
    *(case(f"full+povid/stage-{stage}", stage, "full+povid") for stage in (0, 2, 3)),
    *(case(f"lora+povid/stage-{stage}", stage, "lora+povid") for stage in (2, 3)),
    case("full+mdpo+mpo/stage-2", 2, "full+mdpo+mpo"),
    case("lora+mdpo+mpo/stage-3", 3, "lora+mdpo+mpo"),
]
TUNINGS = sorted({two["tuning"] for two in TWO_RANKS})
ONE_RANK = [case(f"{tuning}/one", tuning=tuning) for tuning in TUNINGS]
"""What the cases of a tuning are compared with: one rank without ZeRO."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(module: str, world_size: int, *words: object, timeout: float = 1200) -> None:
    """Run `python -m module RANK WORLD words...` for all ranks; their output is shown if one fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, (rank, world_size, *words))],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world_size, "\n".join(
        output[-3000:] for output in outputs
    )


def facts_of(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    """What one rank of a case wrote down."""
    facts: dict[str, Any] = json.loads(
        (folder / name / f"rank_{rank}.json").read_text()
    )
    return facts


@pytest.fixture(scope="module")
def trained(store: ImageStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per case with what its ranks found.

    All cases go through the same three processes: to start torch and DeepSpeed takes longer than a case does.
    """
    out = tmp_path_factory.mktemp("ranks")
    for world_size, cases in ((1, ONE_RANK), (2, TWO_RANKS)):
        for one in cases:
            (out / one["name"]).mkdir(parents=True)
        # A process group per case, and a port of its own for each of them.
        ports = json.dumps([free_port() for _ in cases])
        words = [json.dumps(one) for one in cases]
        module = "tests.learner.rank_worker"
        spawn(module, world_size, ports, store.root, out, *words)
    return out


@pytest.mark.parametrize("two", TWO_RANKS, ids=lambda two: two["name"])
def test_two_ranks_equal_one(trained: Path, two: dict[str, Any]) -> None:
    """Whatever the stage, against one rank without ZeRO: each step's figures, then the weights."""
    single = facts_of(trained, f"{two['tuning']}/one")
    first = facts_of(trained, two["name"])
    second = facts_of(trained, two["name"], rank=1)
    for step, (alone, left, right) in enumerate(
        zip(single["metrics"], first["metrics"], second["metrics"], strict=True)
    ):
        gate = {key for key in alone if key.startswith("grounding/")}
        assert bool(gate) == (step in (3, 6))
        for key in {*CURVES, *gate}:
            assert left[key] == right[key], f"step {step}, {key}: ranks disagree"
            assert left[key] == pytest.approx(alone[key], rel=1e-4, abs=2e-5), (
                f"step {step}, {key}"
            )
    for fact in ("trained", "dropped", "again"):
        assert first[fact] == second[fact] == single[fact], fact
    assert first["skipped"] == second["skipped"] == single["skipped"] == [], (
        "rank 1's loss was inf"
    )
    assert first["change_norm"] == pytest.approx(single["change_norm"], rel=1e-4)
    assert first["probe"] == pytest.approx(single["probe"], abs=1e-4)
    weights = dict(np.load(trained / two["name"] / "weights.npz"))
    expected = dict(np.load(trained / two["tuning"] / "one" / "weights.npz"))
    assert_same_weights(weights, expected)


def test_the_curve_moves(trained: Path) -> None:
    """What is compared above is no constant: every step trains, and the first batch's loss has fallen at the end."""
    single = facts_of(trained, "full/one")
    losses = [metrics["loss"] for metrics in single["metrics"]]
    assert len(losses) == NUM_STEPS + 1
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert losses[-1] < 0.9 * losses[0]
    assert [len(ids) for ids in single["trained"]] == [6, 4, 6, 5, 5, 3, 6, 6]


def test_a_checkpoint_of_two_ranks_is_refused_by_one(trained: Path) -> None:
    trainer = Learner(run_config())
    trainer.start()
    with pytest.raises(
        UserError,
        match=r"expected one written by 1 ranks, got one of 2; resume with learner.num_ranks",
    ):
        trainer.load(trained / "full" / "stage-3" / "checkpoint")


def test_a_zero_3_push_takes_one_parameter_at_a_time(
    store: ImageStore,
    tmp_path: Path,
) -> None:
    """25 M parameters, 100 MB, the largest 2 MB: no rank holds more than its half of policy and reference, and a push
    takes less than two of the largest on rank 1; on rank 0, to show that the measure sees it, one copy of the model.
    """
    path = tiny_llava(TinyLlava(hidden=512, layers=6))
    sizes = [math.prod(shape) * 4 for shape in checkpoint_shapes(path).values()]
    model, largest = sum(sizes), max(sizes)
    assert model > 90e6 and model > 30 * largest
    spawn("tests.learner.memory_worker", 2, free_port(), path, store.root, tmp_path)
    first, second = (
        json.loads((tmp_path / f"memory_{rank}.json").read_text()) for rank in range(2)
    )
    for rank in (first, second):
        for kept in ("policy", "reference", "policy_after"):
            assert 0.49 * model < rank[kept] < 0.55 * model, kept
    assert largest <= second["push"] < 2 * largest
    assert model <= first["push"] < model + 4 * largest

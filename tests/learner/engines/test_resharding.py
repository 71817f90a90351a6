"""Checkpoints of 2 ranks read by 4, and those of 4 by 1; ZeRO stage, offloading and engine make no difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.data.images import ImageStore
from learner.checkpoint.header import read_header
from learner.checkpoint.stretches import MASTER, MOMENTS, PARTS, SavedStretches
from tests.learner.helpers import (
    assert_same_weights,
    started,
    train,
    weights_of,
    written,
)
from tests.learner.rank_processes import spawn_cases
from tests.learner.reshard_worker import STEPS_BEFORE, batches_of, config_of
from tests.real_runs import pickles_in

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]

BY_TWO: list[dict[str, Any]] = [
    {"name": "two-2", "learner": {"zero_stage": 2}},
    {"name": "two-3", "learner": {"zero_stage": 3}},
]
BY_FOUR: list[dict[str, Any]] = [
    {"name": "four-3", "learner": {"zero_stage": 3}, "reads": "two-2"},
    {
        "name": "four-1",
        "learner": {"zero_stage": 1, "offload": "optimizer"},
        "reads": "two-3",
    },
    {"name": "four-0", "learner": {"zero_stage": 0}, "reads": "two-3"},
]


@pytest.fixture(scope="module")
def folder(store: ImageStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per case with its checkpoint, `saved/`, and what the steps after it gave."""
    out = tmp_path_factory.mktemp("resharding")
    for world_size, cases in ((2, BY_TWO), (4, BY_FOUR)):
        spawn_cases("tests.learner.reshard_worker", world_size, cases, store.root, out)
    return out


def whole(checkpoint: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Masters and moments of all parameters, put together."""
    header = read_header(checkpoint)
    saved = SavedStretches(checkpoint.glob(PARTS))
    tensors = {}
    for name, shape in header.parameters.items():
        numel = int(np.prod(shape))
        for kind in (MASTER, *MOMENTS):
            tensors[kind, name] = saved.read(kind, name, 0, numel).view(shape)
    return tensors


def assert_same_state(checkpoint: Path, expected: Path) -> None:
    actual, wanted = whole(checkpoint), whole(expected)
    assert actual.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.equal(actual[key], tensor), key
        if key[0] != MASTER:
            # What is compared is no padding.
            assert tensor.abs().sum() > 0 or "bias" in key[1], key


def facts_of(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(
        (folder / name / f"rank_{rank}.json").read_text()
    )
    return facts


@pytest.mark.parametrize("case", BY_FOUR, ids=lambda case: case["name"])
def test_four_ranks_go_on_from_two(folder: Path, case: dict[str, Any]) -> None:
    """Masters and moments are the same bits; after that only the order of sums differs."""
    name, before = case["name"], case["reads"]
    assert_same_state(folder / name / "saved", folder / before / "saved")
    steps = zip(
        facts_of(folder, name)["metrics"],
        facts_of(folder, before)["metrics"],
        strict=True,
    )
    for of_four, of_two in steps:
        assert of_four["lr"] == of_two["lr"]
        for key in ("loss", "grad_norm", "rewards/margins"):
            assert of_four[key] == pytest.approx(of_two[key], rel=1e-4, abs=2e-5), key
    assert_same_weights(
        dict(np.load(folder / name / "weights.npz")),
        dict(np.load(folder / before / "weights.npz")),
    )


def test_new_ranks_say_that_they_draw_anew(folder: Path) -> None:
    for rank in range(4):
        notes = facts_of(folder, "four-3", rank)["notes"]
        assert len(notes) == (rank >= 2)
        for note in notes:
            assert f"learner rank {rank}: random state begins anew" in note


@pytest.mark.parametrize(
    ("engine", "before"), [("torch", "four-3"), ("deepspeed", "four-1")]
)
def test_one_rank_goes_on_from_four(
    folder: Path, store: ImageStore, tmp_path: Path, engine: str, before: str
) -> None:
    trainer = started(config_of(engine))
    assert trainer.load(folder / before / "saved") == []
    trainer.save(tmp_path / "saved")
    train(trainer, batches_of(store)[STEPS_BEFORE:], STEPS_BEFORE)
    weights = weights_of(trainer)
    written(trainer)
    trainer.close()
    assert_same_state(tmp_path / "saved", folder / before / "saved")
    assert_same_weights(weights, dict(np.load(folder / before / "weights.npz")))


def test_every_rank_writes_its_share(folder: Path) -> None:
    """No rank writes more than its part of the state and some padding; together they write it once."""
    for case, num_ranks in ((BY_TWO[0], 2), (BY_FOUR[0], 4), (BY_FOUR[2], 4)):
        saved = folder / case["name"] / "saved"
        total = 4 * sum(tensor.numel() for tensor in whole(saved).values())
        sizes = []
        for rank in range(num_ranks):
            files = saved.glob(f"rank_{rank}_[0-9]*.safetensors")
            sizes.append(sum(file.stat().st_size for file in files))
        assert max(sizes) < 1.2 * total / num_ranks
        assert total < sum(sizes) < 1.3 * total


def test_nothing_is_pickled(folder: Path) -> None:
    files = [path for path in folder.rglob("saved/*") if path.is_file()]
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert pickles_in(folder / "two-2" / "saved") == []

"""One contract, every engine: torch, and DeepSpeed at each ZeRO stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import learner.update
from common.config import RunConfig
from common.errors import UserError
from common.images import ImageStore
from learner.learner import Learner
from tests.learner.helpers import LORA, make_pairs, run_config

DEEPSPEED = [pytest.param(("deepspeed", stage), marks=pytest.mark.real, id=f"deepspeed-{stage}") for stage in range(4)]
ENGINES = pytest.mark.parametrize("kind", [pytest.param(("torch", 0), id="torch"), *DEEPSPEED])
Start = Callable[[RunConfig], Learner]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts learners one after the other: a process has one process group."""
    running: list[Learner] = []

    def begin(config: RunConfig) -> Learner:
        while running:
            running.pop().close()
        running.append(Learner(config))
        running[-1].start()
        return running[-1]

    yield begin
    while running:
        running.pop().close()
    assert not dist.is_initialized()


def config_of(kind: tuple[str, int], tuning: dict | None = None, **learner: object) -> RunConfig:
    return run_config(kind[0], tuning, zero_stage=kind[1], **learner)


def trained(trainer: Learner, store: ImageStore, num_steps: int = 3) -> dict[str, np.ndarray]:
    for step in range(num_steps):
        trainer.step(step, make_pairs(store, 6, 6 * step))
    return trainer.publish(1)[1]


@ENGINES
@pytest.mark.parametrize("tuning", [None, LORA], ids=["full", "lora"])
def test_same_weights_as_torch(start: Start, store: ImageStore, kind: tuple[str, int], tuning: dict | None) -> None:
    expected = trained(start(config_of(("torch", 0), tuning)), store)
    found = trained(start(config_of(kind, tuning)), store)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=name)


@ENGINES
def test_step_reports_norm_and_rate(start: Start, store: ImageStore, kind: tuple[str, int]) -> None:
    """2 steps of warm-up: lr·1/3, lr·2/3, lr; the norm is the one before clipping."""
    trainer = start(config_of(kind, optimizer={"lr": 3e-3, "warmup_steps": 2, "max_grad_norm": 1e-3}))
    metrics = [trainer.step(step, make_pairs(store, 6))[0].metrics for step in range(3)]
    assert [each["lr"] for each in metrics] == pytest.approx([1e-3, 2e-3, 3e-3])
    assert all(each["grad_norm"] > 0.1 for each in metrics)


@ENGINES
def test_a_loss_that_is_not_finite_changes_nothing(
    start: Start, store: ImageStore, monkeypatch: pytest.MonkeyPatch, kind: tuple[str, int]
) -> None:
    trainer = start(config_of(kind))
    clean = trained(trainer, store, 1)
    original = learner.update.pair_losses
    for bad in (math.nan, math.inf):
        monkeypatch.setattr(learner.update, "pair_losses", lambda *args, bad=bad: original(*args) * bad)
        result, dropped = trainer.step(1, make_pairs(store, 6))
        assert result.pair_ids == ()
        assert {drop.reason for drop in dropped} == {"step_skipped"}
    assert result.metrics["steps_skipped"] == 2
    after = trainer.publish(2)[1]
    for name, value in clean.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    monkeypatch.undo()
    result, _ = trainer.step(3, make_pairs(store, 6))
    assert len(result.pair_ids) == 6
    assert math.isfinite(result.metrics["grad_norm"])
    assert result.metrics["lr"] == pytest.approx(2e-3 / 3), "skipped steps do not move the schedule"


@ENGINES
def test_resume_is_exact(start: Start, store: ImageStore, tmp_path: Path, kind: tuple[str, int]) -> None:
    straight = start(config_of(kind))
    straight.step(0, make_pairs(store, 6))
    straight.save(tmp_path / "one")
    straight.step(1, make_pairs(store, 6, 6))
    expected = straight.publish(1)[1]
    resumed = start(config_of(kind))
    resumed.load(tmp_path / "one")
    resumed.step(1, make_pairs(store, 6, 6))
    found = resumed.publish(1)[1]
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.real
@pytest.mark.parametrize("stage", [0, 2])
def test_damaged_deepspeed_checkpoints(start: Start, store: ImageStore, tmp_path: Path, stage: int) -> None:
    trainer = start(config_of(("deepspeed", stage)))
    trainer.step(0, make_pairs(store, 6))
    trainer.save(tmp_path / "one")
    for file in sorted((tmp_path / "one" / "engine").rglob("*.pt")):
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match="expected the learner's saved state"):
            trainer.load(tmp_path / "one")
        file.unlink()
        with pytest.raises(UserError, match="expected the learner's saved state"):
            trainer.load(tmp_path / "one")
        file.write_bytes(data)
    trainer.load(tmp_path / "one")


@pytest.mark.real
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bfloat16_trains_and_travels_as_bits(start: Start, store: ImageStore, stage: int) -> None:
    config = config_of(("deepspeed", stage))
    trainer = start(config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})}))
    pairs = make_pairs(store, 6)
    metrics = [trainer.step(step, pairs)[0].metrics for step in range(4)]
    assert metrics[-1]["loss"] < metrics[0]["loss"] == pytest.approx(math.log(2), abs=2e-2)
    manifest, arrays = trainer.publish(1)
    assert manifest.change_norm > 1e-2
    assert all(name.endswith("@bfloat16") and value.dtype == np.uint16 for name, value in arrays.items())


@pytest.mark.real
def test_a_second_engine_in_one_process_is_refused(start: Start) -> None:
    start(config_of(("deepspeed", 0)))
    with pytest.raises(RuntimeError, match="close the other engine first"):
        Learner(config_of(("deepspeed", 0))).start()


@ENGINES
def test_gathered_weights_are_copies(start: Start, store: ImageStore, kind: tuple[str, int]) -> None:
    trainer = start(config_of(kind))
    before = trainer.publish(0)[1]
    kept = {name: value.copy() for name, value in before.items()}
    trainer.step(0, make_pairs(store, 6))
    for name, value in before.items():
        np.testing.assert_array_equal(value, kept[name])
    assert torch.is_grad_enabled()

"""One contract, every engine: torch, and DeepSpeed at each ZeRO stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from common.config import RunConfig
from common.config.overrides import validate
from common.data.images import ImageStore
from common.errors import UserError
from learner.checkpoint.loading import load
from learner.checkpoint.saving import state_of
from learner.engines.torch_engine import TorchEngine
from learner.forward.tree import tree_batch
from learner.forward.tree_logps import prepare
from learner.learner import Learner
from learner.model.policy import Policy
from tests.learner.families import FAMILIES, family
from tests.learner.helpers import (
    LORA,
    assert_same_arrays,
    assert_same_weights,
    losses_of,
    make_pairs,
    run_config,
    spoil_losses,
    started,
    train,
    weights_of,
    without_image,
    written,
)

DEEPSPEED = [
    pytest.param(("deepspeed", stage), marks=pytest.mark.real, id=f"deepspeed-{stage}")
    for stage in range(4)
]
ENGINES = pytest.mark.parametrize(
    "kind", [pytest.param(("torch", 0), id="torch"), *DEEPSPEED]
)
TUNINGS: dict[str, dict | None] = {"full": None, "lora": LORA}
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


def config_of(
    kind: tuple[str, int],
    tuning: dict | None = None,
    **learner: object,
) -> RunConfig:
    engine, zero_stage = kind
    return run_config(engine, tuning, zero_stage=zero_stage, **learner)


def trained(
    trainer: Learner,
    store: ImageStore,
    num_steps: int = 3,
) -> dict[str, np.ndarray]:
    """The weights after steps on batches that all differ."""
    train(trainer, [make_pairs(store, 6, 6 * step) for step in range(num_steps)])
    return weights_of(trainer)


@pytest.fixture(scope="module")
def torch_weights(store: ImageStore) -> Callable[[str], dict[str, np.ndarray]]:
    """The weights after three steps on the torch engine, by tuning; trained once for all engines."""

    @cache
    def weights(tuning: str) -> dict[str, np.ndarray]:
        trainer = started(config_of(("torch", 0), TUNINGS[tuning]))
        return trained(trainer, store)

    return weights


@ENGINES
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_same_weights_as_torch(
    start: Start,
    store: ImageStore,
    torch_weights: Callable[[str], dict[str, np.ndarray]],
    kind: tuple[str, int],
    tuning: str,
) -> None:
    expected = torch_weights(tuning)
    actual = trained(start(config_of(kind, TUNINGS[tuning])), store)
    assert_same_weights(actual, expected)


@ENGINES
def test_batches_without_images_in_between(
    start: Start,
    store: ImageStore,
    kind: tuple[str, int],
) -> None:
    """The projector has no gradient in the second and third batch: nothing of the first one's may be left over."""
    batches = [make_pairs(store, 6, 6 * step) for step in range(4)]
    for step in (1, 2):
        batches[step] = [without_image(pair) for pair in batches[step]]

    def norms_and_weights(config: RunConfig) -> tuple[list[float], Any]:
        trainer = start(config)
        metrics = train(trainer, batches)
        norms = [of_step["grad_norm"] for of_step in metrics]
        return norms, weights_of(trainer)

    expected_norms, expected = norms_and_weights(config_of(("torch", 0)))
    norms, actual = norms_and_weights(config_of(kind))
    assert norms == pytest.approx(expected_norms, rel=1e-4)
    assert_same_weights(actual, expected)


@ENGINES
def test_step_reports_norm_and_rate(
    start: Start,
    store: ImageStore,
    kind: tuple[str, int],
) -> None:
    """2 steps of warm-up: lr·1/3, lr·2/3, lr; the norm is the one before clipping."""
    optimizer = {"lr": 3e-3, "warmup_steps": 2, "max_grad_norm": 1e-3}
    trainer = start(config_of(kind, optimizer=optimizer))
    metrics = train(trainer, [make_pairs(store, 6)] * 3)
    rates = [of_step["lr"] for of_step in metrics]
    assert rates == pytest.approx([1e-3, 2e-3, 3e-3])
    for of_step in metrics:
        assert of_step["grad_norm"] > 0.1


@ENGINES
def test_a_loss_that_is_not_finite_changes_nothing(
    start: Start,
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
    kind: tuple[str, int],
) -> None:
    """Two skipped steps after a good one; the next one trains, where the schedule was left."""
    trainer = start(config_of(kind))
    before = trained(trainer, store, 1)
    pairs = make_pairs(store, 6)
    for factor in (math.nan, math.inf):
        spoil_losses(monkeypatch, factor)
        result, dropped = trainer.step(1, pairs)
        monkeypatch.undo()
        assert result.pair_ids == ()
        assert {drop.reason for drop in dropped} == {"step_skipped"}
    assert result.metrics["steps_skipped"] == 2
    assert_same_arrays(weights_of(trainer), before)
    result, _ = trainer.step(3, pairs)
    assert len(result.pair_ids) == 6
    assert math.isfinite(result.metrics["grad_norm"])
    # The second update of a warm-up of 2: lr · 2/3.
    assert result.metrics["lr"] == pytest.approx(2e-3 / 3)


@ENGINES
def test_resume_is_exact(
    start: Start,
    store: ImageStore,
    tmp_path: Path,
    kind: tuple[str, int],
) -> None:
    first = make_pairs(store, 6)
    second = make_pairs(store, 6, 6)
    straight = start(config_of(kind))
    straight.step(0, first)
    straight.save(tmp_path / "one")
    # What is written meanwhile is the state of before.
    straight.step(1, second)
    written(straight)
    expected = weights_of(straight)
    resumed = start(config_of(kind))
    resumed.load(tmp_path / "one")
    resumed.step(1, second)
    assert_same_arrays(weights_of(resumed), expected)


@pytest.mark.real
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bfloat16_trains_and_travels_as_bits(
    start: Start,
    store: ImageStore,
    stage: int,
) -> None:
    config = config_of(("deepspeed", stage))
    model = config.model.model_copy(update={"dtype": "bfloat16"})
    trainer = start(config.model_copy(update={"model": model}))
    losses = losses_of(train(trainer, [make_pairs(store, 6)] * 4))
    # Policy = reference, up to bfloat16's rounding.
    assert losses[0] == pytest.approx(math.log(2), abs=2e-2)
    assert losses[-1] < losses[0]
    manifest, arrays = trainer.publish(1)
    assert manifest.change_norm > 1e-2
    for name, value in arrays.items():
        assert name.endswith("@bfloat16"), name
        assert value.dtype == np.uint16, name


@pytest.mark.real
def test_a_second_engine_in_one_process_is_refused(start: Start) -> None:
    start(config_of(("deepspeed", 0)))
    with pytest.raises(RuntimeError, match="close the other engine first"):
        Learner(config_of(("deepspeed", 0))).start()


@ENGINES
def test_gathered_weights_are_copies(
    start: Start,
    store: ImageStore,
    kind: tuple[str, int],
) -> None:
    trainer = start(config_of(kind))
    published = weights_of(trainer)
    before = {name: value.copy() for name, value in published.items()}
    trainer.step(0, make_pairs(store, 6))
    assert_same_arrays(published, before)
    assert torch.is_grad_enabled()


@ENGINES
def test_gradient_checkpointing_changes_nothing(
    start: Start,
    store: ImageStore,
    kind: tuple[str, int],
) -> None:
    """Losses of every step and the weights after; that layers really run again is counted."""
    batches = [make_pairs(store, 6, 6 * step) for step in range(3)]

    def run(checkpointing: bool) -> tuple[list[float], dict[str, np.ndarray], int]:
        trainer = start(config_of(kind, gradient_checkpointing=checkpointing))
        layer = trainer.policy.model.model.language_model.layers[0]
        num_calls = 0

        def count(*_: object) -> None:
            nonlocal num_calls
            num_calls += 1

        layer.self_attn.register_forward_hook(count)
        losses = losses_of(train(trainer, batches))
        weights = weights_of(trainer)
        return losses, weights, num_calls

    expected_losses, expected, num_calls = run(False)
    losses, actual, num_calls_again = run(True)
    assert num_calls_again == 2 * num_calls > 0
    assert losses == pytest.approx(expected_losses, abs=1e-6)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, atol=1e-6, err_msg=name)


@pytest.mark.real
@pytest.mark.parametrize(
    ("stage", "offload"),
    [
        (0, "none"),
        (1, "none"),
        (2, "none"),
        (3, "none"),
        (1, "optimizer"),
        (2, "optimizer"),
        (3, "params"),
    ],
)
def test_bfloat16_weights_have_float32_masters(
    tmp_path: Path,
    stage: int,
    offload: str,
) -> None:
    """Every gradient is 1, so each of Adam's steps is lr = 1e-4, while bfloat16's next number below 1 is 1 - 2^-8.

    A step from a bfloat16 weight would round back to 1 for ever. A master is at 1 - 64e-4 after 64 steps, which
    rounds to 1 - 2·2^-8; had the checkpoint after 16 steps kept bfloat16's 1 only, it would be 1 - 48e-4, rounded to
    1 - 2^-8.
    """
    from learner.engines.deepspeed_engine import DeepSpeedEngine, join_ranks

    optimizer = {"lr": 1e-4, "warmup_steps": 0, "schedule": "constant"}
    config = run_config(
        "deepspeed",
        zero_stage=stage,
        offload=offload,
        optimizer=optimizer,
    ).learner

    def begin() -> DeepSpeedEngine:
        module = torch.nn.Linear(8, 1, bias=False, dtype=torch.bfloat16)
        torch.nn.init.ones_(module.weight)
        join_ranks(config, 0, 1, "127.0.0.1", 0)
        return DeepSpeedEngine(module, config, 0, 1)

    def run(engine: DeepSpeedEngine, num_steps: int) -> float:
        for _ in range(num_steps):
            ones = torch.ones(1, 8, dtype=torch.bfloat16)
            engine.backward(engine.module(ones).sum())
            engine.step()
        weights = engine.gather_weights()
        assert weights is not None
        (weight,) = weights.values()
        assert weight.dtype == torch.bfloat16
        (value,) = weight.unique().tolist()
        return float(value)

    first = begin()
    assert run(first, 16) == 1.0
    state_of(first, {}).write(tmp_path)
    assert run(first, 48) == 1 - 2 * 2**-8
    first.close()
    second = begin()
    load(tmp_path, second)
    assert run(second, 48) == 1 - 2 * 2**-8
    second.close()


@pytest.mark.real
@pytest.mark.parametrize(
    ("stage", "offload"),
    [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "params")],
)
def test_offload_changes_nothing(
    start: Start,
    store: ImageStore,
    tmp_path: Path,
    stage: int,
    offload: str,
) -> None:
    """On a CPU there is nowhere to move to, but DeepSpeed's offloading code runs all the same; it resumes, too."""
    expected = trained(start(config_of(("deepspeed", stage))), store)
    trainer = start(config_of(("deepspeed", stage), offload=offload))
    trainer.step(0, make_pairs(store, 6))
    trainer.save(tmp_path / "one")
    written(trainer)
    resumed = start(config_of(("deepspeed", stage), offload=offload))
    resumed.load(tmp_path / "one")
    batches = [make_pairs(store, 6, first) for first in (6, 12)]
    train(resumed, batches, first_step=1)
    assert_same_weights(weights_of(resumed), expected)


@pytest.mark.parametrize(
    ("learner", "got"),
    [
        (
            {"zero_stage": 0, "offload": "optimizer"},
            "zero_stage >= 1, got deepspeed and 0",
        ),
        (
            {"zero_stage": 2, "offload": "params"},
            "zero_stage >= 3, got deepspeed and 2",
        ),
        (
            {"zero_stage": 3, "offload": "params", "engine": "torch"},
            "zero_stage >= 3, got torch and 3",
        ),
    ],
)
def test_an_offload_that_cannot_be_is_said(
    learner: dict[str, object],
    got: str,
) -> None:
    with pytest.raises(UserError, match=got) as caught:
        validate({"learner": learner, "mixture": {"online_fraction": 1}})
    assert "\n" not in str(caught.value)
    assert "set learner.offload = none" in str(caught.value)


@pytest.mark.real
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("fused_layers", [False, True], ids=["plain", "fused"])
def test_every_family_trains_alike_under_zero_3(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    fused_layers: bool,
) -> None:
    """Weights that a family reads outside of their module's forward would be missing when they are split up."""
    import learner.engines.deepspeed_engine

    monkeypatch.setattr(learner.engines.deepspeed_engine, "PERSISTENT_NUMEL", 0)
    pairs = []
    for seed in (0, 1):
        pair = family(name).pair("a1 b2", seed, chosen=(9, 10, 11), rejected=(12, 13))
        pairs.append(pair)
    optimizer = {"lr": 1e-3, "warmup_steps": 0}
    config = run_config("deepspeed", zero_stage=3, optimizer=optimizer).learner

    def weights_on(make: Callable[[torch.nn.Module], Any]) -> dict[str, torch.Tensor]:
        policy = Policy(deepcopy(family(name).model).float()).train()
        prepare(policy.model, fused_layers)
        engine = make(policy)
        for _ in range(2):
            logps = engine.module(tree_batch(pairs).to("cpu", torch.float32))
            engine.backward(-logps.summed.mean())
            assert engine.step()["grad_norm"] > 0
        weights = dict(engine.gather_weights())
        engine.close()
        # The gradient of a key's bias is 0, as softmax ignores it: AdamW makes steps of the rounding errors.
        for key in list(weights):
            if key.endswith("k_proj.bias"):
                del weights[key]
        return weights

    def on_deepspeed(policy: torch.nn.Module) -> Any:
        deepspeed_engine = learner.engines.deepspeed_engine
        deepspeed_engine.join_ranks(config, 0, 1, "127.0.0.1", 0)
        return deepspeed_engine.DeepSpeedEngine(policy, config, 0, 1)

    expected = weights_on(lambda policy: TorchEngine(policy, config))
    assert_same_weights(weights_on(on_deepspeed), expected)

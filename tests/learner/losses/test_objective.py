"""Losses and weights by source: by hand on log-probs, and as gradients of the tiny model in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from common.config import Learner as LearnerConfig
from common.config.losses import Hinge, Ipo, Loss, Sigmoid
from common.data.images import ImageStore
from common.records import PreferencePair, Response
from learner.batch.collate import Collator
from learner.batch.plan import MicroSize, plan_batch
from learner.learner import Learner
from learner.losses import pair_losses
from learner.losses.objective import Objective
from learner.losses.pair_logps import PairLogps, grouped_by_settings, pair_logps
from learner.model.policy import Policy
from learner.update import accumulate
from tests.learner.helpers import (
    diverged_policies,
    encoded,
    gradients,
    make_pairs,
    models_of,
    run_config,
)

IPO = {"kind": "ipo", "beta": 0.9, "weight": 0.5}


def test_what_a_source_leaves_open_is_as_in_the_loss() -> None:
    config = LearnerConfig.model_validate(
        {
            "loss": {"kind": "ipo", "beta": 0.9},
            "source_losses": {"a": {"weight": 3}, "b": {"kind": "hinge"}},
        }
    )
    assert config.source_losses == {
        "a": Ipo(beta=0.9, weight=3),
        "b": Hinge(beta=0.9),
    }
    assert LearnerConfig.model_validate(config.model_dump()) == config
    assert (config.loss_of("other"), config.weight_of("other")) == (config.loss, 1.0)
    for bad in ({"weight": 0}, {"kind": "dpo"}, {"betta": 1}, "ipo"):
        with pytest.raises(ValidationError):
            LearnerConfig.model_validate({"source_losses": {"a": bad}})


def test_each_pair_has_its_own_loss() -> None:
    """The whole batch at once against every pair alone."""
    torch.manual_seed(0)
    values = [torch.randn(5, dtype=torch.float64) for _ in range(4)]
    logps = PairLogps(*values, torch.arange(1, 6), torch.arange(5, 0, -1))
    sigmoid, ipo, hinge = (
        Sigmoid(),
        Ipo(beta=0.9),
        Hinge(beta=0.5, nll_weight=0.2),
    )
    configs = [ipo, sigmoid, hinge, ipo, sigmoid]

    def losses_of(some: PairLogps, config: Loss) -> dict[str, torch.Tensor]:
        return {"loss": pair_losses(some, config)}

    together = grouped_by_settings(losses_of, logps, configs)["loss"]
    alone = []
    for index, config in enumerate(configs):
        alone.append(losses_of(logps.select(torch.tensor([index])), config)["loss"])
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.fixture(scope="module")
def policies(model_path: Path) -> tuple[Policy, Policy]:
    """A float64 policy and a reference that differs from it."""
    return diverged_policies(model_path, 0.05)


def gradients_of(
    policy: Policy,
    backward: Callable[[], object],
) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    backward()
    return gradients(policy)


def accumulated(
    policies: tuple[Policy, Policy],
    collator: Collator,
    pairs: list[PreferencePair],
    config: LearnerConfig,
    size: int,
) -> dict[str, torch.Tensor]:
    """Gradients of the batch, in micro-batches of this size."""
    plan = plan_batch(pairs, collator, MicroSize(size), 0, 1)
    objective = Objective.of(config, pairs)
    models = models_of(policies, collator)
    return gradients_of(policies[0], lambda: accumulate(models, plan, objective))


def direct(
    policies: tuple[Policy, Policy],
    collator: Collator,
    pairs: list[PreferencePair],
) -> PairLogps:
    """Log-probs of all pairs in one forward."""
    batch = collator.collate(encoded(collator, pairs)).to("cpu", torch.float64)
    with torch.no_grad():
        reference = policies[1](batch)
    return pair_logps(policies[0](batch), reference)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_batch_is_a_weighted_mean_of_the_sources_losses(
    policies: tuple[Policy, Policy],
    collator: Collator,
    store: ImageStore,
    size: int,
) -> None:
    """4 pairs of `online` (sigmoid, weight 1) and 3 of `bdhs` (ipo, weight 0.5): divided by 4 + 3·0.5 = 5.5."""
    pairs = make_pairs(store, 7)
    config = LearnerConfig.model_validate({"source_losses": {"bdhs": IPO}})
    gradient = accumulated(policies, collator, pairs, config, size)
    logps = direct(policies, collator, pairs)
    sigmoid = pair_losses(logps, Sigmoid())[::2]
    ipo = pair_losses(logps, Ipo(beta=0.9))[1::2]
    expected = gradients_of(
        policies[0], ((sigmoid.sum() + 0.5 * ipo.sum()) / 5.5).backward
    )
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("gamma", [0.5, 0.3])
def test_weights_make_the_combination_with_an_external_rejected_answer(
    policies: tuple[Policy, Policy],
    collator: Collator,
    store: ImageStore,
    gamma: float,
) -> None:
    """Both pairs of each prompt in the batch: mean over prompts of γ·L(y+, y-_ext) + (1-γ)·L(y+, y-_BDHS)."""
    external = [replace(pair, source="povid") for pair in make_pairs(store, 3)]
    texts = (
        "There is a blue ring.",
        "There is a red square at the left.",
        "There is nothing.",
    )
    bdhs = [
        replace(pair, id=f"bdhs/{pair.id}", source="bdhs", rejected=Response(text))
        for pair, text in zip(external, texts, strict=True)
    ]
    config = LearnerConfig.model_validate(
        {"source_losses": {"povid": {"weight": gamma}, "bdhs": {"weight": 1 - gamma}}}
    )
    mixed = [pair for both in zip(external, bdhs, strict=True) for pair in both]
    gradient = accumulated(policies, collator, mixed, config, 2)
    with_external = pair_losses(direct(policies, collator, external), Sigmoid())
    with_bdhs = pair_losses(direct(policies, collator, bdhs), Sigmoid())
    formula = (gamma * with_external + (1 - gamma) * with_bdhs).mean()
    torch.testing.assert_close(
        gradient, gradients_of(policies[0], formula.backward), atol=1e-12, rtol=1e-9
    )


def test_metrics_of_each_source(store: ImageStore) -> None:
    """At the start policy = reference: sigmoid gives log 2, ipo (0 - 1/1.8)² = 0.308642; the mean is over 3 + 1.5."""
    trainer = Learner(run_config(source_losses={"bdhs": IPO}))
    trainer.start()
    metrics = trainer.step(0, make_pairs(store, 6))[0].metrics
    assert metrics["loss/online"] == pytest.approx(0.693147, abs=1e-5)
    assert metrics["loss/bdhs"] == pytest.approx(0.308642, abs=1e-5)
    assert metrics["loss"] == pytest.approx(
        (3 * 0.693147 + 1.5 * 0.308642) / 4.5, abs=1e-5
    )
    assert (metrics["pairs/online"], metrics["pairs/bdhs"]) == (3, 3)
    assert metrics["rewards/margins/online"] == pytest.approx(0, abs=1e-5)
    assert "weight" not in metrics

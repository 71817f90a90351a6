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
    started,
    train,
)

IPO = {"kind": "ipo", "beta": 0.9, "weight": 0.5}


def test_what_a_source_leaves_open_is_as_in_the_loss() -> None:
    tree = {
        "loss": {"kind": "ipo", "beta": 0.9},
        "source_losses": {"a": {"weight": 3}, "b": {"kind": "hinge"}},
    }
    config = LearnerConfig.model_validate(tree)
    assert config.source_losses == {
        "a": Ipo(beta=0.9, weight=3),
        "b": Hinge(beta=0.9),
    }
    assert LearnerConfig.model_validate(config.model_dump()) == config
    assert config.loss_of("other") == config.loss
    assert config.weight_of("other") == 1.0


@pytest.mark.parametrize("bad", [{"weight": 0}, {"kind": "dpo"}, {"betta": 1}, "ipo"])
def test_a_sources_loss_that_cannot_be_is_refused(bad: object) -> None:
    with pytest.raises(ValidationError):
        LearnerConfig.model_validate({"source_losses": {"a": bad}})


def test_each_pair_has_its_own_loss() -> None:
    """The whole batch at once against every pair alone."""
    torch.manual_seed(0)
    sums = torch.randn(4, 5, dtype=torch.float64)
    logps = PairLogps(*sums, torch.arange(1, 6), torch.arange(5, 0, -1))
    sigmoid = Sigmoid()
    ipo = Ipo(beta=0.9)
    hinge = Hinge(beta=0.5, nll_weight=0.2)
    configs = [ipo, sigmoid, hinge, ipo, sigmoid]

    def losses_of(some: PairLogps, config: Loss) -> dict[str, torch.Tensor]:
        return {"loss": pair_losses(some, config)}

    together = grouped_by_settings(losses_of, logps, configs)["loss"]
    alone = []
    for index, config in enumerate(configs):
        pair = logps.select(torch.tensor([index]))
        alone.append(pair_losses(pair, config))
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
    # The sources come in turn, `online` first.
    sigmoid = pair_losses(logps, Sigmoid())[::2]
    ipo = pair_losses(logps, Ipo(beta=0.9))[1::2]
    formula = (sigmoid.sum() + 0.5 * ipo.sum()) / 5.5
    expected = gradients_of(policies[0], formula.backward)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("gamma", [0.5, 0.3])
def test_weights_make_the_combination_with_an_external_rejected_answer(
    policies: tuple[Policy, Policy],
    collator: Collator,
    store: ImageStore,
    gamma: float,
) -> None:
    """Both pairs of each prompt in the batch: mean over prompts of γ·L(y+, y-_ext) + (1-γ)·L(y+, y-_BDHS)."""
    texts = (
        "There is a blue ring.",
        "There is a red square at the left.",
        "There is nothing.",
    )
    external, bdhs, mixed = [], [], []
    for pair, text in zip(make_pairs(store, 3), texts, strict=True):
        with_external = replace(pair, source="povid")
        with_bdhs = replace(
            pair, id=f"bdhs/{pair.id}", source="bdhs", rejected=Response(text)
        )
        external.append(with_external)
        bdhs.append(with_bdhs)
        mixed += [with_external, with_bdhs]
    weights = {"povid": {"weight": gamma}, "bdhs": {"weight": 1 - gamma}}
    config = LearnerConfig.model_validate({"source_losses": weights})
    gradient = accumulated(policies, collator, mixed, config, 2)
    external_losses = pair_losses(direct(policies, collator, external), Sigmoid())
    bdhs_losses = pair_losses(direct(policies, collator, bdhs), Sigmoid())
    formula = (gamma * external_losses + (1 - gamma) * bdhs_losses).mean()
    expected = gradients_of(policies[0], formula.backward)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-9)


def test_metrics_of_each_source(store: ImageStore) -> None:
    """At the start policy = reference: sigmoid gives log 2, ipo (0 - 1/1.8)² = 0.308642; the mean is over 3 + 1.5."""
    trainer = started(run_config(source_losses={"bdhs": IPO}))
    (metrics,) = train(trainer, [make_pairs(store, 6)])
    assert metrics["loss/online"] == pytest.approx(0.693147, abs=1e-5)
    assert metrics["loss/bdhs"] == pytest.approx(0.308642, abs=1e-5)
    weighted_mean = (3 * 0.693147 + 1.5 * 0.308642) / 4.5
    assert metrics["loss"] == pytest.approx(weighted_mean, abs=1e-5)
    assert metrics["pairs/online"] == 3
    assert metrics["pairs/bdhs"] == 3
    assert metrics["rewards/margins/online"] == pytest.approx(0, abs=1e-5)
    assert "weight" not in metrics

"""GRPO's loss: by hand, its gradient with and without clipping, the KL penalty, and a step of the tiny model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from common.config.losses import Grpo, Rloo
from common.data.images import ImageStore
from common.records import PreferencePair, Response
from learner.learner import Learner
from learner.losses import loss_figures, pair_losses
from learner.losses.pair_logps import PairLogps
from tests.learner.helpers import (
    encoder_of,
    loss_of_kind,
    make_pairs,
    run_config,
    started,
    train,
)

NO_KL = 1e-12


def pairs_of(
    policy: Tensor,
    advantages: Tensor,
    reference: Tensor | None = None,
    sampling: Tensor | None = None,
    lengths: Tensor | None = None,
) -> PairLogps:
    """Token log-probs [pairs, 2, columns]; what is left out is the policy's, and all columns are tokens."""
    fixed = policy.detach()
    reference = fixed if reference is None else reference
    sampling = fixed if sampling is None else sampling
    if lengths is None:
        lengths = torch.full(policy.shape[:2], policy.shape[2])
    return PairLogps(
        *policy.sum(2).unbind(1),
        *reference.sum(2).unbind(1),
        *lengths.unbind(1),
        advantages=advantages,
        tokens=torch.stack([policy, reference, sampling], 3),
    )


def doubles(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_loss_by_hand() -> None:
    """β = 0.5, clip 0.2. Chosen, A = 2, two tokens: ρ = 1.5 and 0.5, so s = 1.2·2 and 0.5·2, without KL: mean 1.7.

    Rejected, A = -1, one token: ρ = 1, π_ref / π = e, so s = -1, k3 = e - 1 - 1: -1 - 0.5·(e - 2) = -e / 2.
    Loss: -(1.7 - e / 2) / 2.
    """
    policy = doubles([[-1.0, -2.0], [-3.0, 0.0]])
    sampling = policy - doubles([[math.log(1.5), math.log(0.5)], [0.0, 0.0]])
    reference = policy + doubles([[0.0, 0.0], [1.0, 0.0]])
    logps = pairs_of(
        policy, doubles([2, -1]), reference, sampling, torch.tensor([[2, 1]])
    )
    expected = -(1.7 - math.e / 2) / 2
    assert pair_losses(logps, Grpo(beta=0.5)).item() == pytest.approx(expected)
    # Divided by 4 in the place of 2 and 1 tokens: (3.4 - e / 2) / 4.
    constant = pair_losses(logps, Grpo(beta=0.5, divisor=4)).item()
    assert constant == pytest.approx(-(3.4 - math.e / 2) / 8)
    # Up to 1.4 the first token's ratio counts: (2.8 + 1) / 2 = 1.9.
    higher = pair_losses(logps, Grpo(beta=0.5, clip_high=0.4)).item()
    assert higher == pytest.approx(-(1.9 - math.e / 2) / 2)


def test_on_fresh_pairs_it_is_the_policy_gradient_of_mean_log_probs() -> None:
    """ρ = 1: -½ Σ A ∇ (mean token log-prob), nothing behind the end of a side; and gradcheck away from it."""
    torch.manual_seed(0)
    policy = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    advantages = torch.randn(4, 2, dtype=torch.float64)
    lengths = torch.tensor([[3, 1], [2, 2], [1, 3], [3, 3]])
    logps = pairs_of(policy, advantages, lengths=lengths)
    loss = pair_losses(logps, Grpo(beta=NO_KL)).sum()
    (gradient,) = torch.autograd.grad(loss, policy)
    is_token = torch.arange(3) < lengths[:, :, None]
    expected = -0.5 * (advantages / lengths)[:, :, None] * is_token
    torch.testing.assert_close(gradient, expected)

    others = policy.detach() + 0.5 * torch.randn(2, 4, 2, 3, dtype=torch.float64)

    def losses(tokens: Tensor) -> Tensor:
        moved = pairs_of(tokens, advantages, *others, lengths=lengths)
        return pair_losses(moved, Grpo(beta=0.3))

    assert torch.autograd.gradcheck(losses, policy)


@pytest.mark.parametrize(
    ("ratio", "advantage", "is_clipped"),
    [
        # Likelier already, and good: not pushed further. Likelier and bad: pushed back.
        (1.3, 1.0, True),
        (1.3, -1.0, False),
        (0.7, 1.0, False),
        (0.7, -1.0, True),
        (1.1, 1.0, False),
        (0.9, -1.0, False),
    ],
)
def test_clipping_ends_the_gradient_where_the_ratio_has_gone_its_way(
    ratio: float, advantage: float, is_clipped: bool
) -> None:
    """∇ of -½ ρ A is -½ ρ A."""
    policy = torch.full((1, 2, 1), -1.0, dtype=torch.float64, requires_grad=True)
    sampling = doubles([[-1.0 - math.log(ratio)], [-1.0]])
    advantages = doubles([advantage, 0.0])
    logps = pairs_of(policy, advantages, sampling=sampling)
    settings = Grpo(beta=NO_KL)
    (gradient,) = torch.autograd.grad(pair_losses(logps, settings).sum(), policy)
    expected = 0.0 if is_clipped else -0.5 * ratio * advantage
    assert gradient[0, 0, 0].item() == pytest.approx(expected, abs=1e-9)
    # A mean over both completions, of which one is clipped or none.
    figures = loss_figures(logps, [settings])
    share = 0.5 if is_clipped else 0.0
    side = "low" if ratio < 1 else "high"
    assert figures[f"clip_ratio/{side}_mean"] == [share]
    assert figures["clip_ratio/region_mean"] == [share]


def test_figures_by_hand() -> None:
    """Chosen: ρ = 2 and ½, of 2 tokens: mean 1.25, |log ρ| = log 2. Rejected, one token: ρ = 1, k3 = e - 2."""
    policy = doubles([[-1.0, -2.0], [-3.0, 0.0]])
    sampling = policy - doubles([[math.log(2), -math.log(2)], [0.0, 0.0]])
    reference = policy + doubles([[0.0, 0.0], [1.0, 0.0]])
    logps = pairs_of(
        policy, doubles([1, -1]), reference, sampling, torch.tensor([[2, 1]])
    )
    # The second pair is a filler, the third of another loss.
    three = logps.select(torch.tensor([0, 0, 0]))
    settings = [loss_of_kind("sigmoid"), Grpo()]
    assert loss_figures(three, settings) == {
        "kl": [pytest.approx((math.e - 2) / 2)],
        "clip_ratio/low_mean": [0.0],
        "clip_ratio/high_mean": [0.25],
        "clip_ratio/region_mean": [0.25],
        "sampling/importance_sampling_ratio/mean": [pytest.approx(1.125)],
        "sampling/sampling_logp_difference/mean": [pytest.approx(math.log(2) / 2)],
    }
    assert loss_figures(three, [loss_of_kind("sigmoid")]) == {}


@given(st.floats(-5, 5))
@example(1.16e-16)
def test_the_penalty_is_never_negative_and_0_at_the_reference(gap: float) -> None:
    """k3 = e^d - d - 1 with d = logp_ref - logp."""
    policy = torch.full((1, 2, 1), -1.0, dtype=torch.float64)
    logps = pairs_of(policy, torch.zeros(1, 2), policy + gap)
    loss = pair_losses(logps, Grpo(beta=1.0)).item()
    assert loss == pytest.approx(math.exp(gap) - gap - 1, abs=1e-12)
    assert loss >= 0


def test_for_groups_of_two_it_goes_where_rloo_goes() -> None:
    """Equal lengths n, fresh pairs: advantages d / 2 and -d / 2 against d and -d, and a mean over n tokens."""
    torch.manual_seed(1)
    policy = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    of_rloo = doubles([1, -1], [3, -3], [0.5, -0.5])
    gradients: list[Tensor] = []
    for advantages, settings in (
        (of_rloo, Rloo(beta=NO_KL)),
        (of_rloo / 2, Grpo(beta=NO_KL)),
    ):
        loss = pair_losses(pairs_of(policy, advantages), settings).sum()
        gradients += torch.autograd.grad(loss, policy)
    torch.testing.assert_close(gradients[0] / 8, gradients[1])


def sampled(trainer: Learner, pair: PreferencePair, gap: float) -> PreferencePair:
    """The pair as a record of GRPO, sampled by a policy that had each token's log-prob lower by `gap`."""
    collator = trainer.models.collator
    sides: list[Response] = []
    for response in (pair.chosen, pair.rejected):
        token_ids = encoder_of(trainer).encode_response(response.text)
        batch = collator.single(pair.prompt, token_ids)
        with torch.no_grad():
            logps = trainer.policy(batch).token_logps[0]
        values = tuple((logps - gap).tolist())
        sides.append(Response(response.text, token_ids, values))
    chosen, rejected = sides
    return replace(pair, source="grpo", chosen=chosen, rejected=rejected)


def test_a_step_knows_how_far_the_policy_is_from_its_sampling(
    store: ImageStore,
) -> None:
    """Also with a pair of another loss in the batch, which has none of the figures."""
    source_losses = {"bdhs": {"kind": "sigmoid"}}
    config = run_config(loss={"kind": "grpo"}, source_losses=source_losses)
    trainer = started(config)
    first, second, other = make_pairs(store, 3)
    fresh = replace(sampled(trainer, first, 0.0), scores=(1.0, -1.0))
    older = replace(sampled(trainer, second, 0.5), scores=(1.0, 0.0))
    result, dropped = trainer.step(0, [fresh, replace(other, source="bdhs"), older])
    assert not dropped
    metrics = result.metrics
    ratio = math.exp(0.5)
    mean_ratio = metrics["sampling/importance_sampling_ratio/mean"]
    assert mean_ratio == pytest.approx((1 + ratio) / 2, rel=1e-4)
    difference = metrics["sampling/sampling_logp_difference/mean"]
    assert difference == pytest.approx(0.25, abs=1e-4)
    # The chosen side of the older pair: one of four completions.
    assert metrics["clip_ratio/high_mean"] == pytest.approx(0.25)
    assert metrics["clip_ratio/low_mean"] == 0
    # Before the first update the policy is its reference.
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    # -½ (1.2 + 0) where it is clipped, and 0 where it is fresh: advantages add up to nothing.
    assert metrics["loss/grpo"] == pytest.approx(-0.6 / 2, abs=1e-4)


def test_training_moves_towards_what_scored_well(store: ImageStore) -> None:
    trainer = started(run_config(loss={"kind": "grpo", "beta": 1e-3}))
    (pair,) = make_pairs(store, 1)
    record = replace(sampled(trainer, pair, 0.0), scores=(1.0, -1.0))
    metrics = train(trainer, [[record]] * 4)
    assert metrics[-1]["rewards/chosen"] > 0 > metrics[-1]["rewards/rejected"]
    assert metrics[-1]["kl"] > 0


def test_a_pair_without_log_probs_of_its_sampling_is_a_bug(store: ImageStore) -> None:
    trainer = started(run_config(loss={"kind": "grpo"}))
    (pair,) = make_pairs(store, 1)
    with pytest.raises(AssertionError, match="engines give them"):
        trainer.step(0, [replace(pair, source="grpo", scores=(1.0, -1.0))])

"""mDPO, dense DPO and MPO on log-probs: by hand, at policy = reference, with sides swapped, and by gradcheck."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from common.config import Learner as LearnerConfig
from common.config.losses import Ddpo, Loss, Mdpo, Mpo, Sigmoid, Simpo
from learner.losses import pair_losses, pair_metrics
from learner.losses.pair_logps import PairLogps
from tests.learner.helpers import loss_of_kind


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logps(
    chosen: float,
    rejected: float,
    ref_chosen: float,
    ref_rejected: float,
    **more: Tensor,
) -> PairLogps:
    values = [doubles(value) for value in (chosen, rejected, ref_chosen, ref_rejected)]
    return PairLogps(*values, torch.tensor([2]), torch.tensor([4]), **more)


EXAMPLE = logps(-3, -8, -5, -6)
"""Log-ratios +2 and -2, so delta = 4; lengths 2 and 4; log-probs per token -1.5 and -2."""


def loss_of(logps: PairLogps, settings: Loss) -> float:
    """The loss of a single pair."""
    return pair_losses(logps, settings).item()


def swapped(logps: PairLogps) -> PairLogps:
    """The pair with its sides exchanged."""
    exchanged = replace(
        logps,
        policy_chosen=logps.policy_rejected,
        policy_rejected=logps.policy_chosen,
        ref_chosen=logps.ref_rejected,
        ref_rejected=logps.ref_chosen,
        chosen_lengths=logps.rejected_lengths,
        rejected_lengths=logps.chosen_lengths,
    )
    if logps.changed_ratios is None or logps.changed_lengths is None:
        return exchanged
    return replace(
        exchanged,
        changed_ratios=logps.changed_ratios.flip(1),
        changed_lengths=logps.changed_lengths.flip(1),
    )


def softplus(value: float) -> float:
    """-log σ(-value)."""
    return math.log1p(math.exp(value))


def test_simpo_by_hand() -> None:
    """β = 2, γ = 0.5: 2·(-1.5) - 2·(-2) - 0.5 = 0.5, loss log(1 + e^-0.5) = 0.474077. No reference in it."""
    settings = Simpo(beta=2.0, gamma=0.5)
    loss = loss_of(EXAMPLE, settings)
    assert loss == pytest.approx(0.474077, abs=1e-6)
    other_reference = replace(
        EXAMPLE, ref_chosen=doubles(-100), ref_rejected=doubles(-1)
    )
    assert loss_of(other_reference, settings) == loss


def test_simpos_rewards_are_per_token() -> None:
    """β = 2: 2·(-3/2) and 2·(-8/4)."""
    metrics = pair_metrics(EXAMPLE, Simpo(beta=2.0, gamma=0.5))
    assert metrics["rewards/chosen"].item() == -3.0
    assert metrics["rewards/rejected"].item() == -4.0
    assert metrics["rewards/margins"].item() == 1.0


def test_simpo_with_swapped_sides_flips_the_margin() -> None:
    """-1 - 0.5 = -1.5: loss log(1 + e^1.5)."""
    settings = Simpo(beta=2.0, gamma=0.5)
    metrics = pair_metrics(swapped(EXAMPLE), settings)
    assert metrics["rewards/margins"].item() == -1.0
    assert loss_of(swapped(EXAMPLE), settings) == pytest.approx(softplus(1.5))


def betas(loss: dict[str, Any], source_losses: dict[str, Any]) -> list[float]:
    """β of the sources a, b and c, after a round trip through the config's own JSON."""
    tree = {"loss": loss, "source_losses": source_losses}
    config = LearnerConfig.model_validate(tree)
    assert LearnerConfig.model_validate(config.model_dump()) == config
    return [config.loss_of(source).beta for source in "abc"]


def test_simpos_beta_is_its_own_unless_set() -> None:
    """The default is 2.0 for SimPO and 0.1 for all others, and goes from the run's loss to no other scale."""
    assert Sigmoid().beta == 0.1
    assert Simpo().beta == 2.0
    assert Simpo(beta=0.7).beta == 0.7
    sources: dict[str, Any] = {"a": {"kind": "simpo"}, "b": {"kind": "ipo"}}
    assert betas({"beta": 0.3}, sources) == [2.0, 0.3, 0.3]
    weighted = {"a": {"weight": 2}, "b": {"kind": "mpo"}}
    assert betas({"kind": "simpo", "beta": 2.5}, weighted) == [2.5, 0.1, 2.5]


def test_mdpo_by_hand() -> None:
    """β = 0.5, r+ = 2, r+(m') = 1, weights 2 of the image and 3 of the anchor:

    log(1 + e^-2) + 2·log(1 + e^-0.5) + 3·log(1 + e^-1) = 0.126928 + 0.948154 + 0.939785 = 2.014867
    """
    pair = replace(EXAMPLE, cropped_ratios=doubles(1.0))
    settings = Mdpo(beta=0.5, image_weight=2, anchor_weight=3)
    assert loss_of(pair, settings) == pytest.approx(2.014867, abs=2e-6)


DENSE = replace(
    EXAMPLE,
    changed_ratios=doubles(1.5, -1)[None],
    changed_lengths=torch.tensor([[1, 2]]),
)
"""Of r+ = 2 over 2 tokens, 1.5 lies in 1 changed token; of r- = -2 over 4 tokens, -1 in 2 changed ones."""


def test_ddpo_by_hand() -> None:
    """γ = 5: (2 + 4·1.5) / (2 + 4) = 4/3 and (-2 - 4·1) / (4 + 4·2) = -1/2; β = 0.5: margin 0.5·(11/6) = 11/12."""
    settings = Ddpo(beta=0.5, gamma=5)
    assert loss_of(DENSE, settings) == pytest.approx(softplus(-11 / 12))
    assert loss_of(swapped(DENSE), settings) == pytest.approx(softplus(11 / 12))


def test_ddpo_without_normalisation_by_hand() -> None:
    """γ = 5: the sums are 2 + 4·1.5 = 8 and -2 - 4·1 = -6; β = 0.5: margin 0.5·14 = 7."""
    settings = Ddpo(beta=0.5, gamma=5, normalise=False)
    assert loss_of(DENSE, settings) == pytest.approx(softplus(-7))


def test_ddpo_with_equal_weights_is_dpo() -> None:
    """γ = 1, as sums."""
    settings = Ddpo(beta=0.5, gamma=1, normalise=False)
    assert loss_of(DENSE, settings) == loss_of(EXAMPLE, Sigmoid(beta=0.5))


SHIFTED = replace(EXAMPLE, reward_shift=doubles(0.25))
"""With a mean reward δ = 0.25."""


def test_mpo_by_hand() -> None:
    """β = 0.5, rewards 1 and -1, less δ 0.75 and -1.25; -logp(y+) / |y+| = 3/2:

    0.8·log(1 + e^-2) + 0.2·(log(1 + e^-0.75) + log(1 + e^-1.25)) + 3/2
    = 0.8·0.126928 + 0.2·(0.386871 + 0.251929) + 1.5 = 1.729302
    """
    loss = loss_of(SHIFTED, Mpo(beta=0.5))
    assert loss == pytest.approx(1.729302, abs=1e-6)


def test_mpos_generation_term_alone_by_hand() -> None:
    """2 · 3/2."""
    settings = Mpo(
        beta=0.5,
        preference_weight=0,
        quality_weight=0,
        generation_weight=2,
    )
    assert loss_of(SHIFTED, settings) == pytest.approx(3.0)


def test_policy_equal_to_reference() -> None:
    """All ratios 0: three times log 2 for mdpo, log 2 for ddpo, for mpo 0.8·log 2 + 0.2·2·log 2 + 1.5."""
    zeros = doubles(0.0, 0.0)[None]
    same = logps(
        -3,
        -8,
        -3,
        -8,
        cropped_ratios=doubles(0),
        changed_ratios=zeros,
        changed_lengths=torch.tensor([[1, 1]]),
        reward_shift=doubles(0),
    )
    expected = {
        "mdpo": 3 * math.log(2),
        "ddpo": math.log(2),
        "mpo": 1.2 * math.log(2) + 1.5,
    }
    for kind, value in expected.items():
        loss = loss_of(same, loss_of_kind(kind, beta=0.7))
        assert loss == pytest.approx(value), kind


@pytest.mark.parametrize(
    "settings",
    [
        Mdpo(beta=0.3, nll_weight=0.1),
        Ddpo(beta=0.3, nll_weight=0.1),
        Mpo(beta=0.3, nll_weight=0.1, label_smoothing=0.1),
    ],
    ids=lambda settings: settings.kind,
)
def test_gradients(settings: Loss) -> None:
    torch.manual_seed(0)
    # Chosen, rejected and behind the crop, of 5 pairs; then what lies in changed tokens of both sides.
    policy = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    changed = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    ref_chosen, ref_rejected = torch.randn(2, 5, dtype=torch.float64)
    lengths = torch.arange(2, 7)

    def loss(policy_logps: Tensor, changed_ratios: Tensor) -> Tensor:
        chosen, rejected, cropped = policy_logps
        pairs = PairLogps(
            chosen,
            rejected,
            ref_chosen,
            ref_rejected,
            lengths,
            lengths.flip(0),
            cropped_ratios=cropped,
            changed_ratios=changed_ratios,
            changed_lengths=torch.tensor([[1, 2]] * 5),
            reward_shift=torch.full((5,), 0.3, dtype=torch.float64),
        )
        return pair_losses(pairs, settings)

    assert torch.autograd.gradcheck(loss, (policy, changed))


@pytest.mark.parametrize("crop", [(0.0, 0.2), (0.3, 0.2)])
def test_a_crop_must_be_a_range(crop: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="0 < low <= high <= 1"):
        Mdpo(crop=crop)

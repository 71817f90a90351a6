"""mDPO, dense DPO and MPO on log-probs: by hand, at policy = reference, with sides swapped, and by gradcheck."""

from __future__ import annotations

import math
from collections.abc import Callable
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


def softplus(value: float) -> float:
    """-log σ(-value)."""
    return math.log1p(math.exp(value))


def test_simpo_by_hand() -> None:
    """β = 2, γ = 0.5: 2·(-1.5) - 2·(-2) - 0.5 = 0.5, loss log(1 + e^-0.5) = 0.474077. No reference in it."""
    config = Simpo(beta=2.0, gamma=0.5)
    assert pair_losses(EXAMPLE, config).item() == pytest.approx(0.474077, abs=1e-6)
    other = replace(EXAMPLE, ref_chosen=doubles(-100), ref_rejected=doubles(-1))
    assert torch.equal(pair_losses(other, config), pair_losses(EXAMPLE, config))
    metrics = {
        name: value.item() for name, value in pair_metrics(other, config).items()
    }
    assert metrics["rewards/chosen"] == -3.0
    assert metrics["rewards/rejected"] == -4.0
    assert metrics["rewards/margins"] == 1.0


def test_simpo_with_swapped_sides_flips_the_margin() -> None:
    """-1 - 0.5 = -1.5: loss log(1 + e^1.5)."""
    config = Simpo(beta=2.0, gamma=0.5)
    swapped = replace(
        EXAMPLE,
        policy_chosen=EXAMPLE.policy_rejected,
        policy_rejected=EXAMPLE.policy_chosen,
        chosen_lengths=EXAMPLE.rejected_lengths,
        rejected_lengths=EXAMPLE.chosen_lengths,
    )
    assert pair_metrics(swapped, config)["rewards/margins"].item() == -1.0
    assert pair_losses(swapped, config).item() == pytest.approx(softplus(1.5))


def test_simpos_beta_is_its_own_unless_set() -> None:
    assert [
        Sigmoid().beta,
        Simpo().beta,
        Simpo(beta=0.7).beta,
    ] == [0.1, 2.0, 0.7]
    tree: dict[str, Any] = {
        "loss": {"beta": 0.3},
        "source_losses": {"a": {"kind": "simpo"}, "b": {"kind": "ipo"}},
    }
    config = LearnerConfig.model_validate(tree)
    assert [config.loss_of(source).beta for source in "abc"] == [2.0, 0.3, 0.3]
    assert LearnerConfig.model_validate(config.model_dump()) == config
    tree = {
        "loss": {"kind": "simpo", "beta": 2.5},
        "source_losses": {"a": {"weight": 2}, "b": {"kind": "mpo"}},
    }
    config = LearnerConfig.model_validate(tree)
    assert [config.loss_of(source).beta for source in "abc"] == [2.5, 0.1, 2.5]


def test_mdpo_by_hand() -> None:
    """β = 0.5, r+ = 2, r+(m') = 1: log(1 + e^-2) + 2·log(1 + e^-0.5) + 3·log(1 + e^-1) = 0.126928 + 0.948154 + 0.939785
    = 2.014867 with weights 2 of the image and 3 of the anchor."""
    config = Mdpo(beta=0.5, image_weight=2, anchor_weight=3)
    loss = pair_losses(replace(EXAMPLE, cropped_ratios=doubles(1.0)), config)
    assert loss.item() == pytest.approx(2.014867, abs=2e-6)


def test_ddpo_by_hand() -> None:
    """γ = 5, β = 0.5. Of r+ = 2 over 2 tokens, 1.5 lies in 1 changed token: (2 + 4·1.5) / (2 + 4) = 4/3. Of r- = -2
    over 4 tokens, -1 in 2 changed ones: (-2 - 4) / (4 + 8) = -1/2. Margin 0.5·(11/6); as sums 0.5·(8 + 6) = 7."""
    more = replace(
        EXAMPLE,
        changed_ratios=doubles(1.5, -1)[None],
        changed_lengths=torch.tensor([[1, 2]]),
    )
    config = Ddpo(beta=0.5, gamma=5)
    assert pair_losses(more, config).item() == pytest.approx(softplus(-11 / 12))
    sums = Ddpo(beta=0.5, gamma=5, normalise=False)
    assert pair_losses(more, sums).item() == pytest.approx(softplus(-7))
    plain = Ddpo(beta=0.5, gamma=1, normalise=False)
    assert torch.equal(
        pair_losses(more, plain), pair_losses(EXAMPLE, Sigmoid(beta=0.5))
    ), "γ = 1 is DPO"
    swapped = replace(
        more,
        policy_chosen=more.policy_rejected,
        policy_rejected=more.policy_chosen,
        ref_chosen=more.ref_rejected,
        ref_rejected=more.ref_chosen,
        chosen_lengths=more.rejected_lengths,
        rejected_lengths=more.chosen_lengths,
        changed_ratios=more.changed_ratios.flip(1),
        changed_lengths=more.changed_lengths.flip(1),
    )
    assert pair_losses(swapped, config).item() == pytest.approx(softplus(11 / 12))


def test_mpo_by_hand() -> None:
    """β = 0.5, rewards 1 and -1, δ = 0.25: 0.8·log(1 + e^-2) + 0.2·(log(1 + e^-0.75) + log(1 + e^-1.25)) + 3/2
    = 0.8·0.126928 + 0.2·(0.386871 + 0.251929) + 1.5 = 1.729302."""
    shifted = replace(EXAMPLE, reward_shift=doubles(0.25))
    assert pair_losses(shifted, Mpo(beta=0.5)).item() == pytest.approx(
        1.729302, abs=1e-6
    )
    alone = Mpo(
        beta=0.5,
        preference_weight=0,
        quality_weight=0,
        generation_weight=2,
    )
    assert pair_losses(shifted, alone).item() == pytest.approx(3.0)


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
        assert pair_losses(same, loss_of_kind(kind, beta=0.7)).item() == pytest.approx(
            value
        ), kind


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
    inputs = [torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    changed = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    reference = [torch.randn(5, dtype=torch.float64) for _ in range(2)]
    lengths = torch.arange(2, 7)

    def loss(
        chosen: Tensor,
        rejected: Tensor,
        cropped: Tensor,
        ratios: Tensor,
    ) -> Tensor:
        pairs = PairLogps(
            chosen,
            rejected,
            *reference,
            lengths,
            lengths.flip(0),
            cropped_ratios=cropped,
            changed_ratios=ratios,
            changed_lengths=torch.tensor([[1, 2]] * 5),
            reward_shift=torch.full((5,), 0.3, dtype=torch.float64),
        )
        return pair_losses(pairs, settings)

    assert torch.autograd.gradcheck(loss, (*inputs, changed))


@pytest.mark.parametrize(
    "make", [lambda: Mdpo(crop=(0.0, 0.2)), lambda: Mdpo(crop=(0.3, 0.2))]
)
def test_a_crop_must_be_a_range(make: Callable[[], Loss]) -> None:
    with pytest.raises(ValidationError, match="0 < low <= high <= 1"):
        make()

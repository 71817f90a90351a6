from __future__ import annotations

import math

import pytest
import torch

from common.config.losses import Hinge, Ipo, Robust, Sigmoid
from learner.losses import pair_losses, pair_metrics
from learner.losses.pair_logps import PairLogps
from tests.learner.helpers import loss_of_kind

KINDS = ("sigmoid", "robust", "ipo", "hinge", "simpo")
"""Losses that need log-probs of the two sides alone."""


def logps(
    chosen: float,
    rejected: float,
    ref_chosen: float = 0.0,
    ref_rejected: float = 0.0,
) -> PairLogps:
    values = torch.tensor(
        [[chosen], [rejected], [ref_chosen], [ref_rejected]], dtype=torch.float64
    )
    return PairLogps(*values, torch.tensor([2]), torch.tensor([4]))


EXAMPLE = logps(-3.0, -8.0, -5.0, -6.0)
"""Log-ratios +2 and -2, so delta = 4; lengths 2 and 4."""


def test_sigmoid() -> None:
    """β = 0.5: margin 2, loss -log σ(2) = log(1 + e^-2) = 0.126928."""
    assert pair_losses(EXAMPLE, Sigmoid(beta=0.5)).item() == pytest.approx(
        0.126928, abs=1e-6
    )


def test_label_smoothing() -> None:
    """ε = 0.25: 0.75·log(1 + e^-2) + 0.25·log(1 + e^2) = 0.75·0.126928 + 0.25·2.126928 = 0.626928."""
    assert pair_losses(
        EXAMPLE, Sigmoid(beta=0.5, label_smoothing=0.25)
    ).item() == pytest.approx(0.626928, abs=1e-6)


def test_robust() -> None:
    """ε = 0.25: (0.75·log(1 + e^-2) - 0.25·log(1 + e^2)) / 0.5 = (0.095196 - 0.531732) / 0.5 = -0.873072."""
    config = Robust(beta=0.5, label_smoothing=0.25)
    assert pair_losses(EXAMPLE, config).item() == pytest.approx(-0.873072, abs=1e-6)


def test_robust_is_sigmoid_in_the_mean_over_wrong_labels() -> None:
    """3 of 10 labels are wrong: 0.7 of its loss and 0.3 of that of the swapped pair are DPO's on the right label."""
    config = Robust(label_smoothing=0.3)
    swapped = logps(-8.0, -3.0, -6.0, -5.0)
    mean = 0.7 * pair_losses(EXAMPLE, config) + 0.3 * pair_losses(swapped, config)
    assert mean.item() == pytest.approx(pair_losses(EXAMPLE, Sigmoid()).item())


def test_ipo_is_length_normalised() -> None:
    """Per token: 2/2 - (-2/4) = 1.5; β = 0.5: (1.5 - 1)² = 0.25."""
    assert pair_losses(EXAMPLE, Ipo(beta=0.5)).item() == pytest.approx(0.25)


@pytest.mark.parametrize(("beta", "expected"), [(0.1, 0.6), (0.25, 0.0), (0.5, 0.0)])
def test_hinge(beta: float, expected: float) -> None:
    """max(0, 1 - 4β): 0.6 at β = 0.1, nothing from β = 0.25 on."""
    assert pair_losses(EXAMPLE, Hinge(beta=beta)).item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_nll_is_added_per_token(kind: str) -> None:
    """logp(y+) = -3 over 2 tokens: 1.5 nats per token, weighted 0.2: + 0.3."""
    plain = pair_losses(EXAMPLE, loss_of_kind(kind))
    added = pair_losses(EXAMPLE, loss_of_kind(kind, nll_weight=0.2))
    assert (added - plain).item() == pytest.approx(0.3)


def test_policy_equal_to_reference_gives_log_2() -> None:
    """delta = 0: -log σ(0) = log 2, whatever β and ε are."""
    for config in (
        Sigmoid(),
        Sigmoid(beta=3.0, label_smoothing=0.3),
        Robust(label_smoothing=0.3),
    ):
        assert pair_losses(
            logps(-3.0, -8.0, -3.0, -8.0), config
        ).item() == pytest.approx(math.log(2))


def test_swapping_the_sides_flips_the_margin() -> None:
    margins = pair_metrics(EXAMPLE, Sigmoid(beta=0.5))["rewards/margins"].item()
    swapped = pair_metrics(logps(-8.0, -3.0, -6.0, -5.0), Sigmoid(beta=0.5))[
        "rewards/margins"
    ].item()
    assert margins == 2.0
    assert swapped == -2.0


def test_metrics() -> None:
    """β = 0.5: rewards 0.5·2 = 1 and 0.5·(-2) = -1."""
    metrics = pair_metrics(EXAMPLE, Sigmoid(beta=0.5))
    assert {name: value.item() for name, value in metrics.items()} == {
        "rewards/chosen": 1.0,
        "rewards/rejected": -1.0,
        "rewards/margins": 2.0,
        "rewards/accuracies": 1.0,
        "logps/chosen": -3.0,
        "logps/rejected": -8.0,
    }


def test_a_tie_is_no_success() -> None:
    assert (
        pair_metrics(logps(-1.0, -1.0), Sigmoid())["rewards/accuracies"].item() == 0.0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    torch.manual_seed(0)
    policy = [torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    reference = [torch.randn(5, dtype=torch.float64) for _ in range(2)]
    lengths = torch.arange(1, 6)
    config = loss_of_kind(kind, beta=0.3, nll_weight=0.1)

    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return pair_losses(
            PairLogps(chosen, rejected, *reference, lengths, lengths.flip(0)), config
        )

    assert torch.autograd.gradcheck(loss, policy)


def test_extreme_margins_stay_finite() -> None:
    config = Sigmoid(beta=1.0)
    assert pair_losses(logps(-1e6, 1e6), config).item() == 2e6
    assert pair_losses(logps(1e6, -1e6), config).item() == 0.0

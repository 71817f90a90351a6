from __future__ import annotations

import math

import pytest
import torch

from common.config.losses import Hinge, Ipo, Loss, Robust, Sft, Sigmoid
from learner.losses import pair_losses, pair_metrics
from learner.losses.pair_logps import PairLogps
from tests.learner.helpers import loss_of_kind

KINDS = ("sigmoid", "robust", "ipo", "hinge", "simpo", "sft")
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
SWAPPED = logps(-8.0, -3.0, -6.0, -5.0)
"""The same with its sides exchanged: delta = -4."""


def loss_of(logps: PairLogps, settings: Loss) -> float:
    """The loss of a single pair."""
    return pair_losses(logps, settings).item()


def test_sigmoid() -> None:
    """β = 0.5: margin 2, loss -log σ(2) = log(1 + e^-2) = 0.126928."""
    loss = loss_of(EXAMPLE, Sigmoid(beta=0.5))
    assert loss == pytest.approx(0.126928, abs=1e-6)


def test_label_smoothing() -> None:
    """ε = 0.25: 0.75·log(1 + e^-2) + 0.25·log(1 + e^2) = 0.75·0.126928 + 0.25·2.126928 = 0.626928."""
    loss = loss_of(EXAMPLE, Sigmoid(beta=0.5, label_smoothing=0.25))
    assert loss == pytest.approx(0.626928, abs=1e-6)


def test_robust() -> None:
    """ε = 0.25: (0.75·log(1 + e^-2) - 0.25·log(1 + e^2)) / 0.5 = (0.095196 - 0.531732) / 0.5 = -0.873072."""
    loss = loss_of(EXAMPLE, Robust(beta=0.5, label_smoothing=0.25))
    assert loss == pytest.approx(-0.873072, abs=1e-6)


def test_robust_is_sigmoid_in_the_mean_over_wrong_labels() -> None:
    """3 of 10 labels are wrong: 0.7 of its loss and 0.3 of that of the swapped pair are DPO's on the right label."""
    robust = Robust(label_smoothing=0.3)
    mean = 0.7 * loss_of(EXAMPLE, robust) + 0.3 * loss_of(SWAPPED, robust)
    assert mean == pytest.approx(loss_of(EXAMPLE, Sigmoid()))


def test_ipo_is_length_normalised() -> None:
    """Per token: 2/2 - (-2/4) = 1.5; β = 0.5: (1.5 - 1)² = 0.25."""
    assert loss_of(EXAMPLE, Ipo(beta=0.5)) == pytest.approx(0.25)


@pytest.mark.parametrize(("beta", "expected"), [(0.1, 0.6), (0.25, 0.0), (0.5, 0.0)])
def test_hinge(beta: float, expected: float) -> None:
    """max(0, 1 - 4β): 0.6 at β = 0.1, nothing from β = 0.25 on."""
    assert loss_of(EXAMPLE, Hinge(beta=beta)) == pytest.approx(expected)


def test_sft_is_the_nll_of_the_chosen_side() -> None:
    """logp(y+) = -3 over 2 tokens: 1.5 nats per token. Neither the rejected side nor a reference changes it."""
    assert loss_of(EXAMPLE, Sft()) == pytest.approx(1.5)
    assert loss_of(logps(-3.0, -80.0, 7.0, 9.0), Sft(beta=5.0)) == pytest.approx(1.5)


def test_sft_pulls_as_the_nll_of_a_loss_without_a_preference() -> None:
    """The other way to say it, which leaves a gradient of β on the rejected side."""
    gradients = []
    for settings in (Sft(), Sigmoid(beta=1e-12, nll_weight=1.0)):
        pair = torch.tensor([[-3.0], [-8.0]], dtype=torch.float64, requires_grad=True)
        lengths = torch.tensor([2])
        sides = PairLogps(*pair, *torch.zeros_like(pair), lengths, 2 * lengths)
        pair_losses(sides, settings).sum().backward()
        assert pair.grad is not None
        gradients.append(pair.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-11, rtol=0)
    assert gradients[0].tolist() == [[-0.5], [0.0]]


def test_sft_rewards_are_per_token() -> None:
    """-3 over 2 tokens and -8 over 4: -1.5 and -2, the chosen side is the likelier one."""
    metrics = pair_metrics(EXAMPLE, Sft())
    assert metrics["rewards/chosen"].item() == -1.5
    assert metrics["rewards/rejected"].item() == -2.0
    assert metrics["rewards/accuracies"].item() == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_nll_is_added_per_token(kind: str) -> None:
    """logp(y+) = -3 over 2 tokens: 1.5 nats per token, weighted 0.2: + 0.3."""
    without = loss_of(EXAMPLE, loss_of_kind(kind))
    with_nll = loss_of(EXAMPLE, loss_of_kind(kind, nll_weight=0.2))
    assert with_nll - without == pytest.approx(0.3)


@pytest.mark.parametrize(
    "settings",
    [
        Sigmoid(),
        Sigmoid(beta=3.0, label_smoothing=0.3),
        Robust(label_smoothing=0.3),
    ],
    ids=["sigmoid", "smoothed", "robust"],
)
def test_policy_equal_to_reference_gives_log_2(settings: Loss) -> None:
    """delta = 0: -log σ(0) = log 2, whatever β and ε are."""
    same = logps(-3.0, -8.0, -3.0, -8.0)
    assert loss_of(same, settings) == pytest.approx(math.log(2))


@pytest.mark.parametrize(("pair", "expected"), [(EXAMPLE, 2.0), (SWAPPED, -2.0)])
def test_swapping_the_sides_flips_the_margin(
    pair: PairLogps,
    expected: float,
) -> None:
    metrics = pair_metrics(pair, Sigmoid(beta=0.5))
    assert metrics["rewards/margins"].item() == expected


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
    tie = logps(-1.0, -1.0)
    metrics = pair_metrics(tie, Sigmoid())
    assert metrics["rewards/accuracies"].item() == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    torch.manual_seed(0)
    # Chosen and rejected of 5 pairs.
    policy = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(2, 5, dtype=torch.float64)
    chosen_lengths = torch.arange(1, 6)
    rejected_lengths = chosen_lengths.flip(0)
    settings = loss_of_kind(kind, beta=0.3, nll_weight=0.1)

    def loss(policy_logps: torch.Tensor) -> torch.Tensor:
        pairs = PairLogps(*policy_logps, *reference, chosen_lengths, rejected_lengths)
        return pair_losses(pairs, settings)

    assert torch.autograd.gradcheck(loss, policy)


def test_extreme_margins_stay_finite() -> None:
    settings = Sigmoid(beta=1.0)
    assert loss_of(logps(-1e6, 1e6), settings) == 2e6
    assert loss_of(logps(1e6, -1e6), settings) == 0.0

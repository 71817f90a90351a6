from __future__ import annotations

import pytest
import torch

from common.config import Optimizer
from learner.engines.optimizer import ClippedAdamW, lr_factor


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.853553, 0.5, 0.146447, 0]),
    ],
)
def test_warm_up_then_schedule(schedule: str, expected: list[float]) -> None:
    """6 steps, 2 of warm-up: thirds, then progress 0, 1/4, 1/2, 3/4, 1; cosine (1 + cos πp)/2."""
    config = Optimizer(warmup_steps=2, schedule=schedule)
    factors = [lr_factor(config, 6, update) for update in range(7)]
    assert factors == pytest.approx(expected, abs=1e-6)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = ClippedAdamW([weight], Optimizer(lr=0.1))
    weight.grad = torch.tensor([1.0, float("nan"), 1.0])
    optimizer.step()
    assert optimizer.overflow
    assert weight.tolist() == [1.0, 1.0, 1.0]
    assert not optimizer.state


def test_the_norm_is_clipped() -> None:
    """Norm 5, limit 1: the gradient (3, 4) becomes (0.6, 0.8); the norm before clipping is reported."""
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = ClippedAdamW([weight], Optimizer(max_grad_norm=1.0))
    weight.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    assert optimizer.grad_norm == pytest.approx(5.0)
    assert weight.grad.tolist() == pytest.approx([0.6, 0.8], abs=1e-5)

"""Our element-wise functions against the formulas written plainly, gradients included, in float64 and bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from learner.forward.elementwise import rms_norm, rotary, swiglu

EPS = 1e-3


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers with a gradient, in float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(*shape, dtype=torch.float64, generator=generator)
    return drawn.requires_grad_()


def test_rms_norm_by_hand() -> None:
    """x = (3, 4): mean square 12.5; with eps 12.5 the root is 5, so w = (10, 1) gives (3/5 · 10, 4/5)."""
    hidden, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([10.0, 1.0])
    normed = rms_norm(hidden, weight, eps=12.5)
    torch.testing.assert_close(normed, torch.tensor([[6.0, 0.8]]))


def test_rotary_by_hand() -> None:
    """A quarter turn of the pairs (1, 3) and (2, 4): cos 0, sin 1 gives (-3, -4, 1, 2)."""
    cos, sin = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    states = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    turned = rotary(states, cos, sin)
    assert turned.flatten().tolist() == [-3, -4, 1, 2]


def test_swiglu_by_hand() -> None:
    """silu(0) = 0 and silu(x) + silu(-x) = x · (σ(x) - σ(-x)) = x · tanh(x / 2)."""
    gate = torch.tensor([0.0, 1.5, -1.5])
    output = swiglu(gate, torch.tensor([7.0, 1.0, 1.0]))
    assert output[0] == 0
    torch.testing.assert_close(output[1] + output[2], 1.5 * torch.tensor(0.75).tanh())


def test_gradients() -> None:
    hidden, weight = numbers(2, 3, 4), numbers(4, seed=1)
    assert gradcheck(lambda x, w: rms_norm(x, w, EPS), (hidden, weight))
    cos, sin = numbers(1, 3, 4, seed=2).detach(), numbers(1, 3, 4, seed=3).detach()
    assert gradcheck(lambda x: rotary(x, cos, sin), (numbers(1, 2, 3, 4),))
    assert gradcheck(
        lambda x: rotary(x.transpose(1, 2), cos, sin), (numbers(1, 3, 2, 4),)
    )
    assert gradcheck(swiglu, (numbers(2, 5), numbers(2, 5, seed=4)))


def test_a_frozen_weight_gets_no_gradient() -> None:
    hidden, weight = numbers(3, 4), numbers(4).detach()
    rms_norm(hidden, weight, EPS).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_arguments_and_incoming_gradients_stay_as_they_are() -> None:
    """Buffers are written in place, but never those of somebody else."""
    hidden, weight = numbers(1, 3, 2, 4), numbers(4)
    gate, up = numbers(5), numbers(5, seed=1)
    cos = numbers(1, 2, 4).detach()
    arguments = [hidden, weight, gate, up]
    before = [argument.detach().clone() for argument in arguments]
    outputs = [
        rms_norm(hidden, weight, EPS),
        rotary(hidden, cos, cos),
        swiglu(gate, up),
    ]
    for output in outputs:
        grad = torch.full_like(output, 0.5)
        output.backward(grad)
        assert (grad == 0.5).all()
    for argument, value in zip(arguments, before, strict=True):
        assert torch.equal(argument, value)


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_norms_as_transformers_does(weight_dtype: torch.dtype) -> None:
    """Squares and root in float32, one rounding before the weight; so the same bits."""
    hidden = numbers(5, 64).detach().bfloat16().requires_grad_()
    weight = numbers(64).detach().to(weight_dtype)
    wide = hidden.float()
    mean_square = wide.pow(2).mean(-1, keepdim=True)
    normed = (wide * torch.rsqrt(mean_square + EPS)).bfloat16()
    expected = weight * normed
    actual = rms_norm(hidden, weight, EPS)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, atol=0, rtol=1e-2)
    actual.float().sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16

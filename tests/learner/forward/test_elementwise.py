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
    hidden = torch.tensor([[3.0, 4.0]])
    weight = torch.tensor([10.0, 1.0])
    normed = rms_norm(hidden, weight, eps=12.5)
    torch.testing.assert_close(normed, torch.tensor([[6.0, 0.8]]))


def test_rotary_by_hand() -> None:
    """A quarter turn of the pairs (1, 3) and (2, 4): cos 0, sin 1 gives (-3, -4, 1, 2)."""
    cos = torch.zeros(1, 1, 4)
    sin = torch.ones(1, 1, 4)
    states = torch.tensor([1.0, 2.0, 3.0, 4.0])
    turned = rotary(states.view(1, 1, 1, 4), cos, sin)
    assert turned.flatten().tolist() == [-3, -4, 1, 2]


def test_swiglu_by_hand() -> None:
    """silu(0) = 0 and silu(x) + silu(-x) = x · (σ(x) - σ(-x)) = x · tanh(x / 2)."""
    gate = torch.tensor([0.0, 1.5, -1.5])
    up = torch.tensor([7.0, 1.0, 1.0])
    at_zero, at_x, at_minus_x = swiglu(gate, up)
    assert at_zero == 0
    expected = 1.5 * torch.tensor(0.75).tanh()
    torch.testing.assert_close(at_x + at_minus_x, expected)


def test_gradients_of_rms_norm() -> None:
    hidden = numbers(2, 3, 4)
    weight = numbers(4, seed=1)
    assert gradcheck(lambda x, w: rms_norm(x, w, EPS), (hidden, weight))


def test_gradients_of_rotary() -> None:
    """Of states as a projection leaves them, too: tokens before heads, transposed."""
    cos = numbers(1, 3, 4, seed=2).detach()
    sin = numbers(1, 3, 4, seed=3).detach()
    heads_first = numbers(1, 2, 3, 4)
    assert gradcheck(lambda x: rotary(x, cos, sin), (heads_first,))
    tokens_first = numbers(1, 3, 2, 4)
    assert gradcheck(lambda x: rotary(x.transpose(1, 2), cos, sin), (tokens_first,))


def test_gradients_of_swiglu() -> None:
    gate = numbers(2, 5)
    up = numbers(2, 5, seed=4)
    assert gradcheck(swiglu, (gate, up))


def test_a_frozen_weight_gets_no_gradient() -> None:
    hidden = numbers(3, 4)
    weight = numbers(4).detach()
    rms_norm(hidden, weight, EPS).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_arguments_and_incoming_gradients_stay_as_they_are() -> None:
    """Buffers are written in place, but never those of somebody else."""
    hidden = numbers(1, 3, 2, 4)
    weight = numbers(4)
    cos = numbers(1, 2, 4).detach()
    gate = numbers(5)
    up = numbers(5, seed=1)
    arguments = [hidden, weight, cos, gate, up]
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
    hidden = numbers(5, 64).detach().bfloat16()
    hidden.requires_grad_()
    weight = numbers(64).detach().to(weight_dtype)
    # transformers' own lines.
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

"""Element-wise work of decoder layers in few passes over memory, each with its gradient by hand.

transformers writes these as chains of small operations, of which autograd keeps most links. Here each keeps its
arguments only (and one number per row), and writes into one buffer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """w · x / √(mean(x²) + eps) over the last dimension (arXiv 1910.07467), at least in float32 inside."""
    return _RMSNorm.apply(hidden, weight, eps)  # type: ignore[no-any-return, no-untyped-call]


def rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x · cos + (-x₂, x₁) · sin with x = (x₁, x₂) cut in the middle of the last dimension (arXiv 2104.09864).

    `states` is [batch, heads, tokens, width]; `cos` and `sin` are [batch, tokens, width] and have no gradient.
    """
    return _Rotary.apply(states, cos.unsqueeze(1), sin.unsqueeze(1))  # type: ignore[no-any-return, no-untyped-call]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, with silu(x) = x · sigmoid(x) (arXiv 2002.05202); any equal shapes."""
    return _SwiGLU.apply(gate, up)  # type: ignore[no-any-return, no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    """With s = 1 / √(mean(x²) + eps) per row of n numbers, and g the gradient of the output:

    ∂w = Σ_rows s · g · x        ∂x = s · g · w - x · s³ / n · Σ_row g · x · w
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = scale.div_(hidden.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        normed = (wide * scale).to(hidden.dtype)
        product: Tensor = (
            normed.mul_(weight) if weight.dtype == hidden.dtype else normed * weight
        )
        return product

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, scale = ctx.saved_tensors
        wide, factor = hidden.to(scale.dtype), weight.to(scale.dtype)
        products = wide * grad
        rows = products.reshape(-1, products.shape[-1])
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (scale.view(1, -1) @ rows)[0].to(weight.dtype)
        share = (rows @ factor).view_as(scale).mul_(scale.pow(3)).div_(-len(weight))
        grad_hidden = (
            torch.mul(grad, factor, out=products).mul_(scale).addcmul_(wide, share)
        )
        return grad_hidden.to(hidden.dtype), grad_weight, None


class _Rotary(torch.autograd.Function):
    """A rotation per pair of numbers, so the gradient is rotated back (with the sines of the other half)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        first, second = sin.chunk(2, -1)
        return _rotated(states, cos, first, second, -1)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, -1)
        return _rotated(grad, cos, second, first, 1), None, None


def _rotated(
    states: Tensor, cos: Tensor, first: Tensor, second: Tensor, sign: int
) -> Tensor:
    """(x₁ cos₁ + sign · x₂ first, x₂ cos₂ - sign · x₁ second)."""
    out = states * cos
    ours, theirs = out.chunk(2, -1), states.chunk(2, -1)
    ours[0].addcmul_(theirs[1], first, value=sign)
    ours[1].addcmul_(theirs[0], second, value=-sign)
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        of_gate = torch.mul(grad, up)
        torch.ops.aten.silu_backward.grad_input(of_gate, gate, grad_input=of_gate)
        return of_gate, F.silu(gate).mul_(grad)

"""Element-wise functions of decoder layers in few passes over memory, each with a gradient written by hand.

transformers writes these as chains of small operations, and autograd saves most of their intermediate results. Here a
function saves its arguments (and one number per row) only, and writes into one buffer.

    function   formula                                  saved for the backward pass
    rms_norm   w · x / √(mean(x²) + eps)                x, w, 1 / √(…) per row
    rotary     x · cos + (-x₂, x₁) · sin                cos, sin
    swiglu     silu(gate) · up                          gate, up
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from learner.forward.onednn import Gradients


def rms_norm(
    hidden: Tensor,
    weight: Tensor,
    eps: float,
) -> Tensor:
    """w · x / √(mean(x²) + eps) over the last dimension (arXiv 1910.07467), computed in float32 or wider."""
    return _RMSNorm.apply(hidden, weight, eps)  # type: ignore[no-any-return, no-untyped-call]


def rotary(
    states: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> Tensor:
    """x · cos + (-x₂, x₁) · sin with x = (x₁, x₂) cut in the middle of the last dimension (arXiv 2104.09864).

    `states` is [batch, heads, tokens, width]; `cos` and `sin` are [batch, tokens, width] and have no gradient.
    """
    # [batch, 1, tokens, width]: the same angles for all heads.
    cos = cos.unsqueeze(1)
    sin = sin.unsqueeze(1)
    return _Rotary.apply(states, cos, sin)  # type: ignore[no-any-return, no-untyped-call]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, with silu(x) = x · sigmoid(x) (arXiv 2002.05202); any equal shapes."""
    return _SwiGLU.apply(gate, up)  # type: ignore[no-any-return, no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    """With s = 1 / √(mean(x²) + eps) per row of n numbers, and g the gradient of the output:

    ∂w = Σ_rows s · g · x        ∂x = s · g · w - x · s³ / n · Σ_row g · x · w
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        eps: float,
    ) -> Tensor:
        wide_dtype = torch.promote_types(hidden.dtype, torch.float32)
        wide = hidden.to(wide_dtype)
        # s as [..., 1]; a norm reads x once and writes no x² of its size.
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale.square_()
        scale.div_(hidden.shape[-1])
        scale.add_(eps)
        scale.rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        scaled = wide * scale
        normed: Tensor = scaled.to(hidden.dtype)
        # In place would round a wider weight's product to the narrower dtype.
        if weight.dtype == hidden.dtype:
            return normed.mul_(weight)
        return normed * weight

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        hidden, weight, scale = ctx.saved_tensors
        wide = hidden.to(scale.dtype)
        wide_weight = weight.to(scale.dtype)
        # g · x, also as a matrix [rows, n]: both sums are then matrix products.
        grad_x = wide * grad
        rows = grad_x.reshape(-1, grad_x.shape[-1])
        grad_weight: Tensor | None = None
        if ctx.needs_input_grad[1]:
            scale_row = scale.view(1, -1)
            # [1, rows] @ [rows, n]
            summed = scale_row @ rows
            grad_weight = summed[0].to(weight.dtype)
        # -s³ / n · Σ_row g · x · w, as [..., 1]
        row_sums = (rows @ wide_weight).view_as(scale)
        along_x = row_sums.mul_(scale.pow(3))
        along_x.div_(-len(weight))
        # g · x is used up: its buffer takes the result.
        grad_hidden = torch.mul(grad, wide_weight, out=grad_x)
        grad_hidden.mul_(scale)
        grad_hidden.addcmul_(wide, along_x)
        return grad_hidden.to(hidden.dtype), grad_weight, None


class _Rotary(torch.autograd.Function):
    """Every pair of numbers is rotated by an angle, so its gradient is rotated back by the same angle."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(cos, sin)
        sin1, sin2 = sin.chunk(2, -1)
        return _rotated(states, cos, sin1, sin2, -1)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        cos, sin = ctx.saved_tensors
        # The transposed matrix has the two sines in each other's place.
        sin1, sin2 = sin.chunk(2, -1)
        grad_states = _rotated(grad, cos, sin2, sin1, 1)
        return grad_states, None, None


def _rotated(
    states: Tensor,
    cos: Tensor,
    first_sin: Tensor,
    second_sin: Tensor,
    sign: int,
) -> Tensor:
    """(x₁ · cos₁ + sign · x₂ · first_sin, x₂ · cos₂ - sign · x₁ · second_sin)."""
    output = states * cos
    x1, x2 = states.chunk(2, -1)
    output1, output2 = output.chunk(2, -1)
    output1.addcmul_(x2, first_sin, value=sign)
    output2.addcmul_(x1, second_sin, value=-sign)
    return output


class _SwiGLU(torch.autograd.Function):
    """With g the gradient of the output: ∂up = g · silu(gate), ∂gate = g · up · silu'(gate)."""

    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        up: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        gate, up = ctx.saved_tensors
        grad_gate = torch.mul(grad, up)
        # The operator behind F.silu's backward, called directly because it can write into its input.
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        grad_up = F.silu(gate).mul_(grad)
        return grad_gate, grad_up

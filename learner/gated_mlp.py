"""A SwiGLU MLP as one autograd function, over runs of tokens that stay in a processor's cache.

With g = x Wgᵀ, u = x Wuᵀ and h = silu(g) · u the output is h Wdᵀ. Kept are x, g and u; h is made again. Module by
module each of these, as wide as the MLP, would go out to memory and come back for every product and every function.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from learner.products import Product, is_plain, product_of

CACHE_BYTES = 2 << 20
"""Of g in a run of tokens, on a CPU."""
LEAST_TOKENS = 256
"""A product over fewer would wait for its weights."""


def can_fuse(mlp: Any) -> bool:
    """Three plain linear layers without biases."""
    return all(
        is_plain(each) and each.bias is None
        for each in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    )


def gated_mlp(mlp: Any, hidden: Tensor) -> Tensor:
    """What the module `mlp` makes of `hidden` [..., width]."""
    rows, product = hidden.reshape(-1, hidden.shape[-1]), product_of(mlp.gate_proj)
    weights = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
    return _GatedMLP.apply(rows, *weights, product).view(hidden.shape)  # type: ignore[no-any-return, no-untyped-call]


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        product: Product,
    ) -> Tensor:
        ctx.rows, ctx.product = _rows(hidden, gate), product
        wants, kept = any(ctx.needs_input_grad), list[Tensor]()
        output = torch.empty_like(hidden)
        for part, out in zip(
            hidden.split(ctx.rows), output.split(ctx.rows), strict=True
        ):
            gated, raised = product(part, gate), product(part, up)
            out.copy_(product(F.silu(gated).mul_(raised), down))
            if wants:
                kept += [gated, raised]
        ctx.save_for_backward(hidden, gate, up, down, *kept)
        return output

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, gate, up, down, *kept = ctx.saved_tensors
        product, (wants_hidden, *wanted) = ctx.product, ctx.needs_input_grad[:4]
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_weights: list[Tensor | None] = [
            None,
            None,
            None,
        ]  # each as [width, width of the MLP]
        for index, (part, slope) in enumerate(
            zip(hidden.split(ctx.rows), grad.split(ctx.rows), strict=True)
        ):
            gated, raised = kept[2 * index : 2 * index + 2]
            passed = F.silu(gated)
            of_inner = product(slope, down.T)
            of_raised = of_inner * passed
            of_gated = of_inner.mul_(raised)
            torch.ops.aten.silu_backward.grad_input(
                of_gated, gated, grad_input=of_gated
            )
            if of_hidden is not None:
                begin = index * ctx.rows
                of_hidden[begin : begin + len(part)] = product(
                    of_gated, gate.T, product(of_raised, up.T)
                )
            sides = ((part, of_gated), (part, of_raised), (slope, passed.mul_(raised)))
            for place, (narrow, wide) in enumerate(sides):
                if wanted[place]:
                    of_weights[place] = product(narrow.T, wide.T, of_weights[place])
        of_gate, of_up, of_down = of_weights
        turned = (None if each is None else each.T for each in (of_gate, of_up))
        return of_hidden, *turned, of_down, None


def _rows(hidden: Tensor, gate: Tensor) -> int:
    if hidden.device.type != "cpu":
        return max(1, len(hidden))
    return max(LEAST_TOKENS, CACHE_BYTES // (len(gate) * hidden.element_size()))

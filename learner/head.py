"""The language-model head fused with log softmax: of each chunk of logits one number per token is kept.

With h a hidden state, W the head, p = softmax(W h) and t the target, logp = log p_t has the gradients

    ∂logp/∂h = W_t - pᵀ W            ∂logp/∂W = (1_t - p) hᵀ

A frozen head (LoRA) has ∂logp/∂h made in the forward pass, where p is at hand, so its backward costs nothing. A
trained head keeps p (before the division by its sum) of the first chunk, and makes the others' again from h.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from learner.products import Product, product_of

CHUNK_BYTES = 128 << 20
"""Of logits at a time, whatever the batch and the vocabulary. Few large chunks: each reads the whole head."""


def fused_token_logps(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """log softmax(head(hidden))[targets], [positions], float32 (float64 for such models)."""
    product = product_of(head)
    if torch.is_grad_enabled():
        arguments = (hidden, head.weight, head.bias, targets, product)
        return _FusedLogps.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]
    rows = _rows(head.weight)
    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat(
        [
            _chunk(states, head.weight, head.bias, wanted, product)[0]
            for states, wanted in chunks
        ]
    )


class _FusedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        product: Product,
    ) -> Tensor:
        wants_hidden, wants_weight = (
            ctx.needs_input_grad[0],
            any(ctx.needs_input_grad[1:3]),
        )
        rows = _rows(weight)
        logps, slopes = [], []
        kept: list[Tensor] = []
        for states, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
            logp, powers, total = _chunk(states, weight, bias, wanted, product)
            logps.append(logp)
            if wants_hidden and not wants_weight:
                means = product(powers.to(weight.dtype), weight.T).div_(total[:, None])
                slopes.append((weight[wanted] - means).to(hidden.dtype))
            if wants_weight and not kept:
                kept = [powers, total]
        ctx.save_for_backward(hidden, weight, bias, targets, *kept, *slopes)
        ctx.rows, ctx.wants_weight, ctx.product = rows, wants_weight, product
        return torch.cat(logps)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, *saved = ctx.saved_tensors
        if not ctx.wants_weight:
            return (
                torch.cat(saved).mul_(grad[:, None].to(hidden.dtype)),
                None,
                None,
                None,
                None,
            )
        wants_hidden, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = None  # transposed: so nothing that is as wide as the vocabulary need be turned
        grad_bias = torch.zeros_like(bias) if wants_bias else None
        for begin in range(0, len(targets), ctx.rows):
            part = slice(begin, begin + ctx.rows)
            states, wanted = hidden[part], targets[part]
            powers, total = (
                saved
                if begin == 0
                else _chunk(states, weight, bias, wanted, ctx.product)[1:]
            )
            # 1_t - p is -(e - total · 1_t) / total; the rows' factors go into what is narrow.
            powers.scatter_add_(1, wanted[:, None], -total[:, None])
            factor = (-grad[part] / total)[:, None]
            slope, factor = powers.to(weight.dtype), factor.to(weight.dtype)
            if grad_hidden is not None:
                torch.mul(ctx.product(slope, weight.T), factor, out=grad_hidden[part])
            if wants_weight:
                grad_weight = ctx.product((states * factor).T, slope.T, grad_weight)
            if grad_bias is not None:
                grad_bias += (factor.T @ slope)[0]
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.T,
            grad_bias,
            None,
            None,
        )


def _chunk(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    product: Product,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of the targets, e and its row sums with p = e / sum; nothing else of the logits' size lives."""
    logits = product(states, weight)
    if bias is not None:
        logits += bias
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits -= logits.amax(1, keepdim=True)
    wanted = logits.gather(1, targets[:, None]).squeeze(1)
    total = logits.exp_().sum(1)
    return wanted - total.log(), logits, total


def _rows(weight: Tensor) -> int:
    size = torch.promote_types(weight.dtype, torch.float32).itemsize
    return max(1, CHUNK_BYTES // (len(weight) * size))

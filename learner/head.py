"""The language-model head fused with log softmax: of each chunk of logits one number per token is kept.

With h a hidden state, W the head, p = softmax(W h) and t the target, logp = log p_t has the gradients

    ∂logp/∂h = W_t - pᵀ W            ∂logp/∂W = (1_t - p) hᵀ

A frozen head (LoRA) has ∂logp/∂h made in the forward pass, where p is at hand, so its backward costs nothing. A
trained head keeps p for as many positions as fit into KEPT_BYTES and makes the rest again from h.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 24 << 20
"""Of logits at a time."""

KEPT_BYTES = 128 << 20
"""Of probabilities between forward and backward, whatever the batch and the vocabulary."""


def can_fuse(head: nn.Module) -> bool:
    """A plain linear layer that is whole on this rank (ZeRO-3 splits it, LoRA wraps it)."""
    return type(head) is nn.Linear and head.weight.numel() == head.in_features * head.out_features


def fused_token_logps(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """log softmax(head(hidden))[targets], [positions], float32 (float64 for such models)."""
    if torch.is_grad_enabled():
        return _FusedLogps.apply(hidden, head.weight, head.bias, targets)  # type: ignore[no-any-return, no-untyped-call]
    rows = _rows(head.weight, CHUNK_BYTES)
    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([_chunk(states, head.weight, head.bias, wanted)[0] for states, wanted in chunks])


class _FusedLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        rows = _rows(weight, CHUNK_BYTES)
        budget = _rows(weight, KEPT_BYTES) if wants_weight else 0
        logps, kept, slopes = [], [], []
        for states, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
            logp, probabilities = _chunk(states, weight, bias, wanted)
            logps.append(logp)
            if wants_hidden and not wants_weight:
                slopes.append((weight[wanted] - probabilities.to(weight.dtype) @ weight).to(hidden.dtype))
            if budget >= len(wanted):
                budget -= len(wanted)
                kept.append(probabilities)
            else:
                budget = 0
        ctx.save_for_backward(hidden, weight, bias, targets, *kept, *slopes)
        ctx.num_kept, ctx.rows, ctx.wants_weight = len(kept), rows, wants_weight
        return torch.cat(logps)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, *saved = ctx.saved_tensors
        if not ctx.wants_weight:
            return torch.cat(saved).mul_(grad[:, None].to(hidden.dtype)), None, None, None
        wants_hidden, wants_weight, wants_bias, _ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.empty_like(weight) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if wants_bias else None
        for index, begin in enumerate(range(0, len(targets), ctx.rows)):
            part = slice(begin, begin + ctx.rows)
            states, wanted = hidden[part], targets[part]
            slope = saved[index] if index < ctx.num_kept else _chunk(states, weight, bias, wanted)[1]
            slope = slope.mul_(-grad[part, None])
            slope.scatter_add_(1, wanted[:, None], grad[part, None].to(slope.dtype))
            slope = slope.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(slope, weight, out=grad_hidden[part])
            if grad_weight is not None:
                torch.addmm(grad_weight, slope.T, states, beta=int(begin > 0), out=grad_weight)
            if grad_bias is not None:
                grad_bias += slope.sum(0)
        return grad_hidden, grad_weight, grad_bias, None


def _chunk(states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of the targets and all probabilities; nothing else of the logits' size lives."""
    logits = F.linear(states, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits -= logits.amax(1, keepdim=True)
    wanted = logits.gather(1, targets[:, None]).squeeze(1)
    total = logits.exp_().sum(1)
    return wanted - total.log(), logits.div_(total[:, None])


def _rows(weight: Tensor, num_bytes: int) -> int:
    size = torch.promote_types(weight.dtype, torch.float32).itemsize
    return max(1, num_bytes // (len(weight) * size))

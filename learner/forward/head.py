"""The language-model head fused with log softmax: of each chunk of logits one number per token is kept.

With h a hidden state, W the head, p = softmax(W h) and t the target, logp = log p_t has the gradients

    ∂logp/∂h = W_t - pᵀ W            ∂logp/∂W = (1_t - p) hᵀ

When they are computed depends on what trains:

    head              in the forward pass, per chunk              in the backward pass
    frozen (LoRA)     logp and ∂logp/∂h, while p is there         one multiplication by the incoming gradient
    trained           logp; keeps e of the first chunk            e of the other chunks again, from h

where e = exp(logits - their maximum), so that p = e / Σ e.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from learner.forward.onednn import Matmul, matmul_of

CHUNK_BYTES = 128 << 20
"""Size of a chunk of logits, whatever the batch and the vocabulary. Few large chunks: each reads the whole head."""


def fused_token_logps(
    head: nn.Linear,
    hidden: Tensor,
    targets: Tensor,
) -> Tensor:
    """log softmax(head(hidden))[targets], [positions], float32 (float64 for such models).

    Args:
        hidden: [positions, width].
        targets: token ids [positions].
    """
    matmul = matmul_of(head)
    if torch.is_grad_enabled():
        arguments = (hidden, head.weight, head.bias, targets, matmul)
        return _FusedLogps.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]
    chunk_rows = _chunk_rows(head.weight)
    chunks = zip(hidden.split(chunk_rows), targets.split(chunk_rows), strict=True)
    logps = []
    for states, tokens in chunks:
        logp, _, _ = _softmax_chunk(states, head.weight, head.bias, tokens, matmul)
        logps.append(logp)
    return torch.cat(logps)


class _FusedLogps(torch.autograd.Function):
    """`fused_token_logps` with gradients; see the table in the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        matmul: Matmul,
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        head_trains = wants_weight or wants_bias
        chunk_rows = _chunk_rows(weight)
        chunks = zip(hidden.split(chunk_rows), targets.split(chunk_rows), strict=True)
        logps: list[Tensor] = []
        saved: list[Tensor] = []
        for states, tokens in chunks:
            logp, exps, sums = _softmax_chunk(states, weight, bias, tokens, matmul)
            logps.append(logp)
            if head_trains:
                # Of the first chunk alone: most batches are not longer, and memory stays bounded.
                saved = saved or [exps, sums]
            elif wants_hidden:
                # W_t - pᵀ W, [rows, width]
                mean_weight = matmul(exps.to(weight.dtype), weight.T)
                mean_weight = mean_weight.div_(sums[:, None])
                saved.append((weight[tokens] - mean_weight).to(hidden.dtype))
        ctx.save_for_backward(hidden, weight, bias, targets, *saved)
        ctx.chunk_rows = chunk_rows
        ctx.head_trains = head_trains
        ctx.matmul = matmul
        return torch.cat(logps)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, _, _, _, *saved = ctx.saved_tensors
        if ctx.head_trains:
            return _trained_head_gradients(ctx, grad)
        grad_hidden = torch.cat(saved).mul_(grad[:, None].to(hidden.dtype))
        return grad_hidden, None, None, None, None


def _trained_head_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The backward pass of `_FusedLogps` where the head trains; grad is [positions]."""
    hidden, weight, bias, targets, *saved = ctx.saved_tensors
    wants_hidden, wants_weight, wants_bias, *_ = ctx.needs_input_grad
    matmul = ctx.matmul
    grad_hidden = torch.empty_like(hidden) if wants_hidden else None
    # As [width, vocabulary]: so nothing as wide as the vocabulary is transposed on the left of a product.
    grad_weight: Tensor | None = None
    grad_bias = torch.zeros_like(bias) if wants_bias else None
    for start in range(0, len(targets), ctx.chunk_rows):
        rows = slice(start, start + ctx.chunk_rows)
        states, tokens = hidden[rows], targets[rows]
        if start == 0:
            exps, sums = saved
        else:
            _, exps, sums = _softmax_chunk(states, weight, bias, tokens, matmul)
        # 1_t - p = -(e - Σe · 1_t) / Σe. The bracket is made in place of e, [rows, vocabulary]; the factor
        # -grad / Σe of each row goes into the narrow matrices.
        exps.scatter_add_(1, tokens[:, None], -sums[:, None])
        factor = (-grad[rows] / sums)[:, None]
        slope, factor = exps.to(weight.dtype), factor.to(weight.dtype)
        if grad_hidden is not None:
            torch.mul(matmul(slope, weight.T), factor, out=grad_hidden[rows])
        if wants_weight:
            grad_weight = matmul((states * factor).T, slope.T, grad_weight)
        if grad_bias is not None:
            grad_bias += (factor.T @ slope)[0]
    turned = None if grad_weight is None else grad_weight.T
    return grad_hidden, turned, grad_bias, None, None


def _softmax_chunk(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    matmul: Matmul,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of the targets [rows], e [rows, vocabulary] and its row sums [rows], with p = e / sum.

    Everything happens in place of the logits: no second tensor of their size is made.
    """
    logits = matmul(states, weight)
    if bias is not None:
        logits += bias
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits -= logits.amax(1, keepdim=True)
    target_logits = logits.gather(1, targets[:, None]).squeeze(1)
    exps = logits.exp_()
    sums = exps.sum(1)
    return target_logits - sums.log(), exps, sums


def _chunk_rows(weight: Tensor) -> int:
    """Positions per chunk of logits of CHUNK_BYTES."""
    logit_bytes = torch.promote_types(weight.dtype, torch.float32).itemsize
    return max(1, CHUNK_BYTES // (len(weight) * logit_bytes))

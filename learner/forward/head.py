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

from learner.forward.onednn import Gradients, Matmul, matmul_of

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
    weight = head.weight
    bias = head.bias
    if torch.is_grad_enabled():
        return _FusedLogps.apply(hidden, weight, bias, targets, matmul)  # type: ignore[no-any-return, no-untyped-call]
    chunk_rows = _chunk_rows(weight)
    hidden_chunks = hidden.split(chunk_rows)
    target_chunks = targets.split(chunk_rows)
    logps = []
    for states, tokens in zip(hidden_chunks, target_chunks, strict=True):
        logp, _, _ = _softmax_chunk(states, weight, bias, tokens, matmul)
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
        hidden_chunks = hidden.split(chunk_rows)
        target_chunks = targets.split(chunk_rows)
        logps: list[Tensor] = []
        saved: list[Tensor] = []
        for states, tokens in zip(hidden_chunks, target_chunks, strict=True):
            logp, exps, sums = _softmax_chunk(states, weight, bias, tokens, matmul)
            logps.append(logp)
            if head_trains:
                # Only the first chunk's e is kept. Most batches have no other, and memory stays bounded.
                saved = saved or [exps, sums]
            elif wants_hidden:
                slope = _frozen_head_slope(exps, sums, weight, tokens, matmul)
                saved.append(slope.to(hidden.dtype))
        ctx.save_for_backward(hidden, weight, bias, targets, *saved)
        ctx.chunk_rows = chunk_rows
        ctx.head_trains = head_trains
        ctx.matmul = matmul
        return torch.cat(logps)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        hidden, _, _, _, *saved = ctx.saved_tensors
        if ctx.head_trains:
            return _trained_head_gradients(ctx, grad)
        # ∂logp/∂h of all chunks [positions, width], times the incoming gradient of each position.
        slopes = torch.cat(saved)
        factors = grad[:, None].to(hidden.dtype)
        grad_hidden = slopes.mul_(factors)
        return grad_hidden, None, None, None, None


def _frozen_head_slope(
    exps: Tensor,
    sums: Tensor,
    weight: Tensor,
    targets: Tensor,
    matmul: Matmul,
) -> Tensor:
    """∂logp/∂h = W_t - pᵀ W of a chunk, [rows, width]; `exps` and `sums` are those of `_softmax_chunk`."""
    # The division by Σ e comes after the product, where it touches [rows, width] and not [rows, vocabulary].
    mean_weight = matmul(exps.to(weight.dtype), weight.T)
    mean_weight = mean_weight.div_(sums[:, None])
    target_weight = weight[targets]
    return target_weight - mean_weight


def _trained_head_gradients(ctx: Any, grad: Tensor) -> Gradients:
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
        states = hidden[rows]
        tokens = targets[rows]
        if start == 0:
            exps, sums = saved
        else:
            _, exps, sums = _softmax_chunk(states, weight, bias, tokens, matmul)
        # ∂logp/∂logits = 1_t - p = -(e - Σe · 1_t) / Σe
        # The bracket is made in place of e, [rows, vocabulary]. The rest, times the incoming gradient, is one
        # number per row, [rows, 1]; it is multiplied into the narrow matrices.
        targets_column = tokens[:, None]
        exps.scatter_add_(1, targets_column, -sums[:, None])
        slope = exps.to(weight.dtype)
        factor = -grad[rows] / sums
        factor = factor[:, None].to(weight.dtype)
        if grad_hidden is not None:
            unscaled = matmul(slope, weight.T)
            torch.mul(unscaled, factor, out=grad_hidden[rows])
        if wants_weight:
            scaled_states = states * factor
            grad_weight = matmul(scaled_states.T, slope.T, grad_weight)
        if grad_bias is not None:
            grad_bias += (factor.T @ slope)[0]
    if grad_weight is not None:
        grad_weight = grad_weight.T
    return grad_hidden, grad_weight, grad_bias, None, None


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
    wide_dtype = torch.promote_types(logits.dtype, torch.float32)
    logits = logits.to(wide_dtype)
    # Without the row's maximum exp cannot overflow; p does not change.
    logits -= logits.amax(1, keepdim=True)
    # Read before exp_ overwrites them.
    targets_column = targets[:, None]
    target_logits = logits.gather(1, targets_column).squeeze(1)
    exps = logits.exp_()
    sums = exps.sum(1)
    logps = target_logits - sums.log()
    return logps, exps, sums


def _chunk_rows(weight: Tensor) -> int:
    """Positions per chunk of logits of CHUNK_BYTES."""
    logit_dtype = torch.promote_types(weight.dtype, torch.float32)
    vocabulary = len(weight)
    bytes_per_row = vocabulary * logit_dtype.itemsize
    return max(1, CHUNK_BYTES // bytes_per_row)

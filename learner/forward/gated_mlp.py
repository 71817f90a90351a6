"""A SwiGLU MLP as one autograd function, over runs of tokens whose intermediate values stay in a processor's cache.

For every run of tokens x [tokens, width], with the weights Wg, Wu [inner, width] and Wd [width, inner]:

    g = x Wgᵀ      u = x Wuᵀ      h = silu(g) · u      y = h Wdᵀ            g, u, h: [tokens, inner]

Saved for the backward pass are x, g and u; h is computed again. Module by module, each of the matrices as wide as the
MLP would go out to memory and come back for every product and every element-wise function.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from learner.forward.onednn import Gradients, Matmul, is_plain_linear, matmul_of

CACHE_BYTES = 2 << 20
"""Size of g in a run of tokens, on a CPU."""
MIN_TOKENS = 256
"""Length of a run at the least: a product over fewer tokens would wait for its weights."""


def can_fuse(mlp: Any) -> bool:
    """Whether the MLP is three plain linear layers without biases."""
    for layer in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        if not is_plain_linear(layer) or layer.bias is not None:
            return False
    return True


def gated_mlp(mlp: Any, hidden: Tensor) -> Tensor:
    """The output of the module `mlp` for `hidden` [..., width]."""
    output = _GatedMLP.apply(  # type: ignore[no-untyped-call]
        hidden.reshape(-1, hidden.shape[-1]),
        mlp.gate_proj.weight,
        mlp.up_proj.weight,
        mlp.down_proj.weight,
        matmul_of(mlp.gate_proj),
    )
    return output.view(hidden.shape)  # type: ignore[no-any-return]


class _GatedMLP(torch.autograd.Function):
    """With d the gradient of y, the gradients of a run of tokens are

    ∂h = d Wd      ∂u = ∂h · silu(g)      ∂g = ∂h · u · silu'(g)      ∂x = ∂g Wg + ∂u Wu
    ∂Wg = ∂gᵀ x    ∂Wu = ∂uᵀ x            ∂Wd = dᵀ h
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        matmul: Matmul,
    ) -> Tensor:
        run_length = _run_length(hidden, gate)
        keeps_inner = any(ctx.needs_input_grad)
        inner: list[Tensor] = []
        output = torch.empty_like(hidden)
        # Views, so that a run's result is written into the output.
        hidden_runs = hidden.split(run_length)
        output_runs = output.split(run_length)
        for x, y in zip(hidden_runs, output_runs, strict=True):
            g = matmul(x, gate)
            u = matmul(x, up)
            h = F.silu(g).mul_(u)
            y.copy_(matmul(h, down))
            if keeps_inner:
                inner += [g, u]
        ctx.save_for_backward(hidden, gate, up, down, *inner)
        ctx.run_length = run_length
        ctx.matmul = matmul
        return output

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        hidden, gate, up, down, *inner = ctx.saved_tensors
        matmul = ctx.matmul
        run_length = ctx.run_length
        wants_hidden, wants_gate, wants_up, wants_down, _ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        # All three as [width, inner]: the side as wide as the MLP is never transposed on the left (a copy in oneDNN).
        grad_gate: Tensor | None = None
        grad_up: Tensor | None = None
        grad_down: Tensor | None = None
        hidden_runs = hidden.split(run_length)
        grad_runs = grad.split(run_length)
        # Saved were g and u of each run in turn.
        g_runs = inner[0::2]
        u_runs = inner[1::2]
        start = 0
        for x, d, g, u in zip(hidden_runs, grad_runs, g_runs, u_runs, strict=True):
            silu_g = F.silu(g)
            dh = matmul(d, down.T)
            du = dh * silu_g
            # From here on dh's memory holds dg, and silu_g's holds h.
            dg = dh.mul_(u)
            torch.ops.aten.silu_backward.grad_input(dg, g, grad_input=dg)
            stop = start + len(x)
            if grad_hidden is not None:
                dx_up = matmul(du, up.T)
                grad_hidden[start:stop] = matmul(dg, gate.T, dx_up)
            if wants_gate:
                grad_gate = matmul(x.T, dg.T, grad_gate)
            if wants_up:
                grad_up = matmul(x.T, du.T, grad_up)
            if wants_down:
                h = silu_g.mul_(u)
                grad_down = matmul(d.T, h.T, grad_down)
            start = stop
        if grad_gate is not None:
            grad_gate = grad_gate.T
        if grad_up is not None:
            grad_up = grad_up.T
        return grad_hidden, grad_gate, grad_up, grad_down, None


def _run_length(hidden: Tensor, gate: Tensor) -> int:
    """Tokens per run: on a CPU so many that g fits a cache, elsewhere all."""
    if hidden.device.type != "cpu":
        return max(1, len(hidden))
    bytes_per_token = len(gate) * hidden.element_size()
    return max(MIN_TOKENS, CACHE_BYTES // bytes_per_token)

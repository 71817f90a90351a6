"""Matrix products of linear layers on CPUs: oneDNN's where torch's default, MKL, leaves half of the processor unused.

MKL runs its AVX-512 kernels on Intel's processors only; oneDNN asks what the processor can do. Both are part of torch
and compute in plain float32. No public function of torch calls oneDNN for float32 matrices; the one taken here is what
torch.compile makes of a linear layer.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMALL = 1 << 20
"""Multiply-adds below which a call's own cost is larger than what is won."""


class Product(Protocol):
    """left [m, k], right [n, k], more [m, n] -> left rightᵀ + more [m, n]; `more` may be written to."""

    def __call__(
        self, left: Tensor, right: Tensor, more: Tensor | None = None
    ) -> Tensor: ...


@cache
def mkl_is_slow() -> bool:
    """Whether this process should go through oneDNN: torch has both, AVX-512 is there, and the maker is not Intel."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        facts = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    return (
        wide
        and "GenuineIntel" not in facts
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def plain(left: Tensor, right: Tensor, more: Tensor | None = None) -> Tensor:
    """As torch does it."""
    return left @ right.T if more is None else more.addmm_(left, right.T)


def through_onednn(left: Tensor, right: Tensor, more: Tensor | None = None) -> Tensor:
    """The same for float32 on a CPU; anything else, and what is small, goes the plain way."""
    if (
        left.dtype != torch.float32
        or left.device.type != "cpu"
        or left.numel() * len(right) < SMALL
    ):
        return plain(left, right, more)
    linear = torch.ops.mkldnn._linear_pointwise
    if more is None:
        return linear(left, right, None, "none", [], "")  # type: ignore[no-any-return]
    return linear(left, more, right, None, "add")  # type: ignore[no-any-return]


def product_of(layer: nn.Module) -> Product:
    """How a linear layer multiplies."""
    own = vars(layer).get("forward")
    return (
        through_onednn if isinstance(own, partial) and own.func is _forward else plain
    )


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is its weight and bias alone, and whole on this rank: LoRA wraps it, nf4 and ZeRO-3 change it.

    ZeRO-3's mark counts even while the weight is gathered: it may be on its way, ahead of the module's own call.
    """
    if type(layer) is not nn.Linear or hasattr(layer.weight, "ds_id"):
        return False
    return layer.weight.numel() == layer.in_features * layer.out_features


def install(model: nn.Module) -> None:
    """Let every linear layer multiply through oneDNN; module by module, so that hooks and adapters stay in place."""
    for module in model.modules():
        if type(module) is nn.Linear:
            vars(module)["forward"] = partial(_forward, module)


def _forward(layer: nn.Linear, hidden: Tensor) -> Tensor:
    if hidden.dtype != torch.float32 or hidden.device.type != "cpu":
        return F.linear(hidden, layer.weight, layer.bias)
    return _Linear.apply(hidden, layer.weight, layer.bias)  # type: ignore[no-any-return, no-untyped-call]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        found = through_onednn(hidden.reshape(-1, hidden.shape[-1]), weight)
        if bias is not None:
            found += bias
        return found.view(*hidden.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad
        of_hidden = (
            through_onednn(rows, weight.T).view_as(hidden) if wants_hidden else None
        )
        of_weight = (
            _of_weight(rows, hidden.reshape(-1, hidden.shape[-1]))
            if wants_weight
            else None
        )
        return of_hidden, of_weight, rows.sum(0) if wants_bias else None


def _of_weight(grad: Tensor, hidden: Tensor) -> Tensor:
    """gradᵀ hidden; oneDNN copies what is turned and stands at the left, so that is the narrower of the two."""
    if grad.shape[1] <= hidden.shape[1]:
        return through_onednn(grad.T, hidden.T)
    return through_onednn(hidden.T, grad.T).T

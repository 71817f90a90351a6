"""Linear layers through oneDNN on CPUs where torch's default, MKL, leaves half of the processor unused.

MKL runs its AVX-512 kernels on Intel's processors only; oneDNN asks what the processor can do. Both are part of torch
and compute in plain float32. No public function of torch calls oneDNN for float32 matrices. The operator used here,
`torch.ops.mkldnn._linear_pointwise`, is what torch.compile makes of a linear layer.

All matrix products of the fused functions (`head.py` and `gated_mlp.py`) have one form, a `Matmul`:

    left [m, k] · right [n, k]ᵀ (+ add [m, n])  ->  [m, n]
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MIN_MULTIPLY_ADDS = 1 << 20
"""In a smaller product the cost of the call is larger than what oneDNN wins."""


Gradients = tuple[Tensor | None, ...]
"""What an autograd function's backward returns: one per argument of forward, None for what has no gradient."""


class Matmul(Protocol):
    """left [m, k], right [n, k] and add [m, n] -> left rightᵀ + add, [m, n]; `add` may be overwritten."""

    def __call__(
        self,
        left: Tensor,
        right: Tensor,
        add: Tensor | None = None,
    ) -> Tensor: ...


@cache
def mkl_is_slow() -> bool:
    """Whether oneDNN is the faster one here: torch has both, AVX-512 is there, and the maker is not Intel."""
    has_mkl = torch.backends.mkl.is_available()
    has_onednn = torch.backends.mkldnn.is_available()
    if not (has_mkl and has_onednn):
        return False
    try:
        cpu_info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    has_avx512 = "AVX512" in torch.backends.cpu.get_cpu_capability()
    is_intel = "GenuineIntel" in cpu_info
    # A private operator: a torch without it goes on with MKL.
    has_operator = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_avx512 and not is_intel and has_operator


def torch_matmul(
    left: Tensor,
    right: Tensor,
    add: Tensor | None = None,
) -> Tensor:
    """A `Matmul` by torch's default library."""
    if add is None:
        return left @ right.T
    return add.addmm_(left, right.T)


def onednn_matmul(
    left: Tensor,
    right: Tensor,
    add: Tensor | None = None,
) -> Tensor:
    """A `Matmul` by oneDNN for float32 on a CPU; other tensors and small products go to torch's default."""
    # m · k times n
    multiply_adds = left.numel() * len(right)
    if multiply_adds < MIN_MULTIPLY_ADDS or not _is_float32_on_cpu(left):
        return torch_matmul(left, right, add)
    linear = torch.ops.mkldnn._linear_pointwise
    if add is None:
        return linear(left, right, None, "none", [], "")  # type: ignore[no-any-return]
    return linear(left, add, right, None, "add")  # type: ignore[no-any-return]


def matmul_of(layer: nn.Module) -> Matmul:
    """The `Matmul` that a linear layer multiplies with: oneDNN's after `install`, else torch's."""
    # `install` leaves its forward on the instance; an untouched layer finds that of its class only.
    forward = vars(layer).get("forward")
    is_ours = isinstance(forward, partial) and forward.func is _linear_forward
    return onednn_matmul if is_ours else torch_matmul


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether a layer is no more than its weight and bias, and whole on this rank.

    LoRA wraps a layer, nf4 and ZeRO-3 change its weight. ZeRO-3's mark (`ds_id`) counts even while the weight is
    gathered: it may have been fetched ahead of the module's own call, and be gone before it is used.
    """
    if type(layer) is not nn.Linear:
        return False
    if hasattr(layer.weight, "ds_id"):
        return False
    whole_numel = layer.in_features * layer.out_features
    return layer.weight.numel() == whole_numel


def install(model: nn.Module) -> None:
    """Let every linear layer of a model multiply through oneDNN."""
    for module in model.modules():
        if type(module) is nn.Linear:
            # Only the forward of this one module changes, so that hooks and adapters stay in place.
            vars(module)["forward"] = partial(_linear_forward, module)


def _is_float32_on_cpu(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def _linear_forward(layer: nn.Linear, hidden: Tensor) -> Tensor:
    if not _is_float32_on_cpu(hidden):
        return F.linear(hidden, layer.weight, layer.bias)
    return _OneDNNLinear.apply(hidden, layer.weight, layer.bias)  # type: ignore[no-any-return, no-untyped-call]


class _OneDNNLinear(torch.autograd.Function):
    """y = x Wᵀ + b, with the gradients gᵀ x, g W and Σ g; the operator has none of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        rows = hidden.reshape(-1, hidden.shape[-1])
        output = onednn_matmul(rows, weight)
        if bias is not None:
            output += bias
        return output.view(*hidden.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        hidden, weight = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad
        # [positions, output width] and [positions, input width]
        grad_rows = grad.reshape(-1, grad.shape[-1])
        rows = hidden.reshape(-1, hidden.shape[-1])
        grad_hidden: Tensor | None = None
        grad_weight: Tensor | None = None
        grad_bias: Tensor | None = None
        if wants_hidden:
            grad_hidden = onednn_matmul(grad_rows, weight.T).view_as(hidden)
        if wants_weight:
            grad_weight = _weight_gradient(grad_rows, rows)
        if wants_bias:
            grad_bias = grad_rows.sum(0)
        return grad_hidden, grad_weight, grad_bias


def _weight_gradient(grad: Tensor, hidden: Tensor) -> Tensor:
    """gradᵀ hidden, [output width, input width], from [positions, …] of both."""
    # oneDNN copies a transposed matrix on the left, so the narrower of the two stands there.
    if grad.shape[1] <= hidden.shape[1]:
        return onednn_matmul(grad.T, hidden.T)
    return onednn_matmul(hidden.T, grad.T).T

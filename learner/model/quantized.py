"""QLoRA: the language model's linear layers in 4 bits, adapters in full precision (arXiv 2305.14314, sections 2-3).

Vision tower, projector, embeddings, norms and head are not quantised. The quantised model is the reference. Pushes and
exports carry the dequantised base with the adapters merged, so that an engine computes what was trained. Before the
first push an engine runs the start policy from disk, which differs from the reference by the rounding to 4 bits.
bitsandbytes is imported in this file only.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.model_parts import PROJECTORS, VISION_TOWERS

_VISION_SIDE = "|".join([*VISION_TOWERS, *PROJECTORS])
NOT_QUANTIZED = ("lm_head", f".*({_VISION_SIDE})")
"""Patterns of module names that stay in full precision, matched from a name's beginning."""


def nf4_settings(dtype: torch.dtype) -> Any:
    """NormalFloat4 with double quantisation, computing in `dtype`, as transformers' loader takes it.

    Raises:
        UserError: bitsandbytes is missing.
    """
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "model.tuning.quantize: expected the package bitsandbytes for nf4, got none; run make setup, "
            "or pip install bitsandbytes, or set quantize = none"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # In spite of its name it holds for 4 bits, too.
        llm_int8_skip_modules=list(NOT_QUANTIZED),
    )


def clean_up_quantized(model: Any) -> None:
    """Give a quantised model one arithmetic for training and evaluation, and the config of the plain model.

    To be called once, after loading.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if getattr(weight, "quant_state", None) is not None:
            # Else bitsandbytes repacks weights in place, for a bfloat16 kernel, at the first evaluation on a CPU.
            module.support_avx512bf16_for_cpu = False
    # The config goes into exports, whose weights are not quantised.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def dequantised(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the 4-bit ones in full shape and the model's dtype.

    Args:
        module: where the 4-bit weights and their scales are.
        weights: by the names of `module.named_parameters()`.
    """
    full = dict(weights)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in full and _scales(parameter) is not None:
            full[name] = full_weight(parameter).to("cpu")
    return full


def full_weight(parameter: nn.Parameter) -> Tensor:
    """Its values, in full shape and the model's dtype where it is in 4 bits; where it lies."""
    scales = _scales(parameter)
    if scales is None:
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit

    plain: Tensor = dequantize_4bit(parameter.data, scales)
    return plain


def full_shape(parameter: nn.Parameter) -> tuple[torch.Size, bool]:
    """The shape of `full_weight`, also where ZeRO-3 keeps a share of it, and whether it is in 4 bits."""
    scales = _scales(parameter)
    if scales is not None:
        return torch.Size(scales.shape), True
    # ZeRO-3 says how large the whole is.
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return torch.Size(shape), False


def _scales(parameter: nn.Parameter) -> Any:
    """What bitsandbytes marks its 4-bit parameters by; None for others."""
    return getattr(parameter, "quant_state", None)

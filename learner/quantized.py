"""QLoRA: the language side's linear layers held in 4 bits, adapters in full precision (arXiv 2305.14314, sections 2-3).

Vision tower, projector, embeddings, norms and head stay as they are. The quantised model is the reference, and what
leaves the learner is the dequantised base with the adapters merged: an engine then computes what was trained. Before
the first push it runs the start policy as it is on disk, which differs from the reference by the rounding to 4 bits.
bitsandbytes is imported here only.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError

KEPT = (
    "lm_head",
    r".*(vision_tower|visual|vision_model|multi_modal_projector|merger|connector)",
)
"""Patterns of module names that are not quantised, from their beginning."""


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
        llm_int8_skip_modules=list(KEPT),  # the name is shared with 8 bits
    )


def settle(model: Any) -> None:
    """Once per loaded model: one arithmetic in training and in evaluation, and a config of the plain model.

    On a CPU that has it bitsandbytes would repack weights in place for a bfloat16 kernel at the first evaluation; the
    config goes into exports, whose weights are not quantised.
    """
    for module in model.modules():
        if getattr(getattr(module, "weight", None), "quant_state", None) is not None:
            module.support_avx512bf16_for_cpu = False
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def dequantised(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of `module.named_parameters()`, the 4-bit ones in full shape and the model's dtype."""
    found = dict(weights)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        state = getattr(parameter, "quant_state", None)
        if name in found and state is not None:
            from bitsandbytes.functional import dequantize_4bit

            found[name] = dequantize_4bit(parameter.data, state).to("cpu")
    return found

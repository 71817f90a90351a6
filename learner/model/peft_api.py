"""The only file that imports peft."""

from __future__ import annotations

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from common.config import Lora
from common.errors import UserError
from common.model_parts import lora_targets, part_of


def add_lora(model: nn.Module, tuning: Lora) -> PeftModel:
    """The model with adapters on its `lora_targets`, everything else frozen.

    Raises:
        UserError: a configured side has no such layer.
    """
    targets = lora_targets(model, tuning)
    sides = {part_of(name) for name in targets}
    for side in tuning.sides:
        if side not in sides:
            wanted = list(tuning.target_modules) if side == "language" else "all"
            raise UserError(
                f"model.tuning.target_modules: expected names of linear layers of the {side} side, got "
                f"{wanted}, none of which exists; print the model to see its names"
            )
    config = LoraConfig(
        r=tuning.r,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=targets,
        bias="none",
    )
    # In the model's dtype, which DeepSpeed expects of all parameters that are split up already.
    return get_peft_model(model, config, autocast_adapter_dtype=False)

"""What a push of a LoRA policy carries: the adapter alone wherever engines can run it, else the merged weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.config.model import Lora, Model
from common.config.rollout import Rollout
from common.errors import UserError

MAX_RANK = 512
"""Of an adapter that vLLM runs."""


def pushes_adapter(model: Model, rollout: Rollout) -> bool:
    """Whether engines get the adapter alone: what `model.tuning.push` says, or what `auto` means here.

    The adapter alone is exact, and little: merged into bfloat16 most of a young update is rounded away.
    """
    tuning = model.tuning
    if not isinstance(tuning, Lora):
        return False
    if tuning.push == "auto":
        return against_adapter(model, rollout) is None
    return tuning.push == "adapter"


def against_adapter(model: Model, rollout: Rollout) -> str | None:
    """Why engines cannot run the adapter of this LoRA policy beside the start policy's weights, or None."""
    tuning = model.tuning
    assert isinstance(tuning, Lora), "only LoRA has an adapter"
    if tuning.sides != ("language",):
        return f"adapters on the sides {', '.join(tuning.sides)}, of which engines run those on language alone"
    if tuning.is_quantized:
        return f"a base in {tuning.quantize}, which engines hold in {model.dtype}"
    if tuning.r > MAX_RANK:
        return f"rank {tuning.r}, of which vLLM runs at most {MAX_RANK}"
    if not rollout.num_gpus and has_experts(model.path):
        return (
            "a mixture of experts on a CPU, where vLLM runs no adapters beside experts"
        )
    return None


def check_adapter(model: Model, rollout: Rollout) -> None:
    """Refuse (UserError) to push the adapter of this LoRA policy alone where engines cannot run it."""
    reason = against_adapter(model, rollout)
    if reason is not None:
        raise UserError(
            f"model.tuning.push: expected merged for {reason}, got adapter; set push = merged"
        )


def has_experts(path: str) -> bool:
    """Whether a model directory's config names several experts; False for a config that cannot be read.

    Whoever loads the model says what is wrong with that.
    """
    try:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return _names_experts(config)


def _names_experts(config: Any) -> bool:
    if not isinstance(config, dict):
        return False
    for key, value in config.items():
        if isinstance(value, dict):
            if _names_experts(value):
                return True
        elif "expert" in key and isinstance(value, int) and value > 1:
            return True
    return False

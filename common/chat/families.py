"""What a family of models can do, by its configuration alone: asked before anything starts."""

from __future__ import annotations

from typing import Any

from common.chat import ChatEncoder
from common.config import Model
from common.config.bdhs import BdhsConfig
from common.errors import UserError

SHORTENED = ("llava", "llava_next", "qwen2_5_vl")
"""Families for which tests prove that a sequence without some image tokens is the one in which nobody sees them."""
_SEEN_BOTH_WAYS = ("gemma3", "paligemma")


def family_of(config: Any) -> str:
    """The family's name; Pixtral's configuration calls itself a LLaVA."""
    if config.vision_config.model_type == "pixtral" and config.model_type == "llava":
        return "pixtral"
    return str(config.model_type)


def against_shortened(config: Any) -> str | None:
    """Why image tokens of this family cannot be left out, or None."""
    family = family_of(config)
    if family in SHORTENED:
        return None
    return f"{family}; image tokens can be left out of {', '.join(SHORTENED)}"


def against_cpu_engines(config: Any, dtype: str) -> str | None:
    """Why vLLM's CPU build does not run this family as it is, or None."""
    family = family_of(config)
    if family in _SEEN_BOTH_WAYS:
        return (
            f"{family}, whose image tokens see each other in both directions, which vLLM leaves out on a CPU; run "
            "engines on GPUs"
        )
    layer_types = getattr(config.get_text_config(), "layer_types", None) or ()
    if "linear_attention" in layer_types and dtype != "bfloat16":
        return (
            f"{family} in {dtype}, whose linear attention vLLM computes on a CPU in bfloat16 alone; set model.dtype = "
            "bfloat16"
        )
    return None


def check_cpu_engines(encoder: ChatEncoder, model: Model) -> None:
    """Refuse (UserError) a family that engines on CPUs would run in another way than the learner."""
    reason = against_cpu_engines(encoder.config, model.dtype)
    if reason is not None:
        raise UserError(
            f"{encoder.where}: expected a family that engines run on a CPU, got {reason}"
        )


def check_bdhs(encoder: ChatEncoder, bdhs: BdhsConfig) -> None:
    """Refuse (UserError) a variant of BDHS that hides image tokens, for a family that cannot do without them."""
    # Noise is laid on the pixels of any family.
    reason = against_shortened(encoder.config)
    if bdhs.variant == "noise" or reason is None:
        return
    raise UserError(
        f"rollout.bdhs.variant = {bdhs.variant}: expected a family whose image tokens can be left out, got {reason}; "
        "set rollout.bdhs.variant = noise"
    )

"""The policy and its reference: a Hugging Face vision-language model that answers with completion log-probs.

`Policy` is the module that engines wrap, so that every use of the weights goes through one `forward` (ZeRO-3
gathers parameters there). Full training keeps a frozen copy of the start policy as reference; LoRA needs none,
its reference is the policy with adapters off.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from common.config import Lora, Model
from common.errors import UserError
from common.loading import readable
from learner.collate import RowBatch
from learner.logps import CompletionLogps, completion_logps
from learner.quantized import nf4_settings, settle
from learner.tree import TreeBatch
from learner.tree_logps import tree_logps
from learner.vision import VisionShare

VISION_TOWERS = ("vision_tower", "visual", "vision_model")
PROJECTORS = ("multi_modal_projector", "merger", "connector")

_LORA_PREFIX = "base_model.model."
_LORA_A, _LORA_B, _LORA_BASE = (
    ".lora_A.default.weight",
    ".lora_B.default.weight",
    ".base_layer.weight",
)


class Policy(nn.Module):
    """`net` is the Hugging Face model, or peft's wrapper around it."""

    net: Any

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.fused = True
        self.vision: VisionShare | None = None

    @property
    def model(self) -> Any:
        """The Hugging Face model itself; with LoRA its linear layers carry the adapters."""
        return (
            self.net.get_base_model() if isinstance(self.net, PeftModel) else self.net
        )

    def forward(
        self,
        batch: RowBatch | TreeBatch,
        adapters: bool = True,
        alternatives: Tensor | None = None,
        best: bool = False,
    ) -> CompletionLogps:
        """Log-probs of every row's response; `adapters=False` is the reference of a LoRA policy.

        `alternatives` and `best` as in `completion_logps`, for plain rows only.
        """
        off = nullcontext() if adapters else self.net.disable_adapter()
        with off:
            if isinstance(batch, TreeBatch):
                assert alternatives is None and not best, (
                    "losses that ask for more go through plain rows"
                )
                return tree_logps(self.model, batch, self.fused, self.vision)
            return completion_logps(self.model, batch, alternatives, best, self.fused)


def load_policy(
    config: Model, model_path: str | Path, gradient_checkpointing: bool = False
) -> Policy:
    """The start policy with the configured parts trainable, in train mode, on the CPU.

    Raises:
        UserError: no, broken or incomplete weights; an unknown architecture; LoRA targets that do not exist.
    """
    dtype = getattr(torch, config.dtype)
    quantised = isinstance(config.tuning, Lora) and config.tuning.quantize == "nf4"
    model = load_model(model_path, dtype, nf4_settings(dtype) if quantised else None)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if isinstance(config.tuning, Lora):
        return Policy(_add_lora(model, config.tuning)).train()
    if config.freeze_vision:
        for name, parameter in model.named_parameters():
            if is_tower(name):
                parameter.requires_grad_(False)
    return Policy(model).train()


def load_model(path: str | Path, dtype: torch.dtype, quantization: Any = None) -> Any:
    """A vision-language model from safetensors, never from code of the checkpoint (UserError otherwise).

    Args:
        quantization: of `learner.quantized`, or None.
    """
    where = f"model.path {path}"
    if not (Path(path) / "config.json").is_file():
        raise UserError(
            f"{where}: expected a Hugging Face model directory, got none with a config.json; check the path"
        )
    if not any(Path(path).glob("*.safetensors")):
        raise UserError(
            f"{where}: expected *.safetensors, got none; convert the checkpoint"
        )
    with readable(path, expected="an architecture and weights"):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **(
                {"quantization_config": quantization, "device_map": {"": "cpu"}}
                if quantization
                else {}
            ),
        )
    model, report = loaded
    missing = sorted(
        set(report["missing_keys"])
        - set(getattr(model, "all_tied_weights_keys", None) or ())
    )
    if missing:
        raise UserError(
            f"{where}: expected every weight, got a checkpoint without {len(missing)} of them ({missing[0]}, …); "
            "they would stay random: copy the checkpoint again"
        )
    if quantization:
        settle(model)
    return model


def freeze_copy(policy: Policy, share_tower: bool) -> Policy:
    """A frozen copy in eval mode: the reference of full training. It may share a tower that is frozen anyway."""
    memo: dict[int, object] = {}
    for name, module in policy.named_modules():
        leaf = name.rpartition(".")[2]
        frozen = leaf in VISION_TOWERS and not any(
            parameter.requires_grad for parameter in module.parameters()
        )
        if share_tower and frozen:
            memo[id(module)] = module
    return copy.deepcopy(policy, memo).requires_grad_(False).eval()


def is_tower(name: str) -> bool:
    """Whether a parameter or module name lies in the vision tower; a projector inside of it does not count."""
    pieces = name.split(".")
    return not any(map(_is_projector, pieces)) and any(
        piece in VISION_TOWERS for piece in pieces
    )


def _is_projector(piece: str) -> bool:
    return piece.startswith(PROJECTORS) or "merger" in piece


def side_of(name: str) -> str:
    """Which side of the model a module or parameter name is on: language, projector or vision."""
    if is_tower(name):
        return "vision"
    return (
        "projector"
        if any(_is_projector(piece) for piece in name.split("."))
        else "language"
    )


def lora_targets(model: nn.Module, tuning: Lora) -> list[str]:
    """Full names of the linear layers that carry adapters: `target_modules` on the language side, all on the others."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and (side := side_of(name)) in tuning.sides
        and (side != "language" or name.rpartition(".")[2] in tuning.target_modules)
    ]


def merge_lora(
    weights: Mapping[str, Tensor], tuning: Lora
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Merged and base weights by Hugging Face name, from the gathered weights of a peft model; no input is changed.

    W' = W + (alpha / r)·B·A, computed in float32 and rounded once to W's dtype (arXiv 2106.09685, section 4.1).
    """
    merged: dict[str, Tensor] = {}
    base: dict[str, Tensor] = {}
    for full_name, weight in weights.items():
        name = full_name.removeprefix(_LORA_PREFIX)
        if name.endswith((_LORA_A, _LORA_B)):
            continue
        stem = full_name.removesuffix(_LORA_BASE)
        name = name.replace(".base_layer.", ".")
        base[name] = merged[name] = weight
        if stem + _LORA_A in weights:
            update = weights[stem + _LORA_B].float() @ weights[stem + _LORA_A].float()
            merged[name] = (weight.float() + tuning.alpha / tuning.r * update).to(
                weight.dtype
            )
    return merged, base


def is_adapter(name: str) -> bool:
    """Whether a parameter of a peft model is an adapter's."""
    return name.endswith((_LORA_A, _LORA_B))


def adapter_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's tensors of a peft model under the names that peft's own files have."""
    return {
        name.replace(".default.", "."): weight
        for name, weight in weights.items()
        if is_adapter(name)
    }


def adapter_norm(weights: Mapping[str, Tensor], tuning: Lora) -> float:
    """L2 norm of what the adapters add, over all layers; no product B·A is made.

    |B·A|² = tr(AᵀBᵀBA) = sum of (BᵀB) ∘ (AAᵀ), matrices of r x r.
    """
    total = 0.0
    for name, a in weights.items():
        if name.endswith(_LORA_A):
            b = weights[name.removesuffix(_LORA_A) + _LORA_B].double()
            total += float(((b.T @ b) * (a.double() @ a.double().T)).sum())
    return tuning.alpha / tuning.r * math.sqrt(max(total, 0.0))


def _add_lora(model: nn.Module, tuning: Lora) -> PeftModel:
    targets = lora_targets(model, tuning)
    for side in tuning.sides:
        if all(side_of(name) != side for name in targets):
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
    return get_peft_model(model, config)

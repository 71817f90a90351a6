"""The policy and its reference: a Hugging Face vision-language model that answers with completion log-probs.

Engines wrap `Policy`, so that every use of the weights goes through its one `forward` (ZeRO-3 gathers parameters
there). The reference of full training is the start policy, loaded once more and frozen. LoRA needs no second model: its
reference is the policy with the adapters switched off.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

from common.config import Lora, Model
from common.errors import UserError
from common.loading import check_folder, check_weights, readable
from common.model_parts import is_vision_tower, vision_tower
from learner.batch.collate import RowBatch
from learner.forward.logps import CompletionLogps, completion_logps
from learner.forward.tree import TreeBatch
from learner.forward.tree_logps import tree_logps
from learner.model.quantized import clean_up_quantized, nf4_settings
from learner.model.streaming import Place, Shards, one_at_a_time
from learner.model.vision_features import VisionShare


class Policy(nn.Module):
    """A vision-language model as a function of a batch.

    `net` is the Hugging Face model, or peft's wrapper around it. `fused` lets `learner.forward.head` make logits and
    gradients; `vision` is what policy and reference share of the vision side. Both are set by `learner.fast`.
    """

    net: Any

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.fused = True
        self.vision: VisionShare | None = None

    @property
    def model(self) -> Any:
        """The Hugging Face model itself; with LoRA its linear layers carry the adapters."""
        # Only peft's wrapper has this method; to ask for its class would be to import peft.
        base_model = getattr(self.net, "get_base_model", None)
        return self.net if base_model is None else base_model()

    def forward(
        self,
        batch: RowBatch | TreeBatch,
        adapters: bool = True,
        alternatives: Tensor | None = None,
        best: bool = False,
        likeliest: int = 0,
    ) -> CompletionLogps:
        """Log-probs of every row's response.

        Args:
            adapters: False for the reference of a LoRA policy.
            alternatives, best, likeliest: as in `completion_logps`, for plain rows only.
        """
        switch = nullcontext() if adapters else self.net.disable_adapter()
        with switch:
            if isinstance(batch, TreeBatch):
                assert alternatives is None and not best and not likeliest, (
                    "losses that ask for more go through plain rows"
                )
                return tree_logps(self.model, batch, self.fused, self.vision)
            return completion_logps(
                self.model, batch, alternatives, best, self.fused, likeliest
            )


def load_policy(
    config: Model,
    model_path: str | Path,
    gradient_checkpointing: bool = False,
    device: torch.device | str = "cpu",
    place: Place | None = None,
) -> Policy:
    """The start policy with the configured parts trainable, in train mode.

    Args:
        device, place: as in `load_model`.

    Raises:
        UserError: no, broken or incomplete weights; an unknown architecture; LoRA targets that do not exist.
    """
    tuning = config.tuning
    dtype = getattr(torch, config.dtype)
    quantization = None
    if isinstance(tuning, Lora) and tuning.quantize == "nf4":
        quantization = nf4_settings(dtype)
    model = load_model(model_path, dtype, quantization, device, place)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if isinstance(tuning, Lora):
        # peft takes two seconds to import, and brings bitsandbytes: other runs do without.
        from learner.model.peft_api import add_lora

        return Policy(add_lora(model, tuning)).train()
    if config.freeze_vision:
        for name, parameter in model.named_parameters():
            if is_vision_tower(name):
                parameter.requires_grad_(False)
    return Policy(model).train()


def load_reference(
    config: Model,
    model_path: str | Path,
    device: torch.device | str = "cpu",
    place: Place | None = None,
    shares_tower_of: Policy | None = None,
) -> Policy:
    """The start policy, frozen and in eval mode: the reference of full training.

    Args:
        device, place: as in `load_model`.
        shares_tower_of: whose vision tower it uses if no part of that one trains.
    """
    model = load_model(
        model_path, getattr(torch, config.dtype), device=device, place=place
    )
    if shares_tower_of is not None:
        tower = vision_tower(shares_tower_of.model)
        trains = any(weight.requires_grad for weight in tower.parameters())
        if not trains:
            model.set_submodule(_name_of(model, vision_tower(model)), tower)
    return Policy(model).requires_grad_(False).eval()


def _name_of(model: Any, wanted: Any) -> str:
    """The dotted name of a module in a model."""
    for name, module in model.named_modules():
        if module is wanted:
            return str(name)
    raise LookupError(f"{type(wanted).__name__} is no part of the model")


def load_model(
    path: str | Path,
    dtype: torch.dtype,
    quantization: Any = None,
    device: torch.device | str = "cpu",
    place: Place | None = None,
) -> Any:
    """A vision-language model from safetensors; code that comes with a checkpoint is never run.

    Weights go one by one from the file to the device, in the wanted dtype.

    Args:
        quantization: of `learner.model.quantized`, or None.
        place: called with every parameter as soon as it is loaded, with what it needs to stay where it is to be.

    Raises:
        UserError: the directory has no config, no safetensors, an unknown architecture, or not every weight.
    """
    check_folder(path)
    check_weights(path)
    options: dict[str, Any] = {}
    if quantization is not None:
        options["quantization_config"] = quantization
    if quantization is not None or torch.device(device).type != "cpu":
        options["device_map"] = {"": str(device)}
    shards = Shards(Path(path))
    with readable(path, expected="an architecture and weights"):
        config: Any = AutoConfig.from_pretrained(
            path, trust_remote_code=False, local_files_only=True
        )
        architecture = _architecture(config)
        with one_at_a_time(place):
            model, report = architecture.from_pretrained(
                None,
                config=config,
                state_dict=shards.tensors(),
                dtype=dtype,
                output_loading_info=True,
                **options,
            )
        shards.close()
        _name(model, path)
    _check_all_loaded(path, model, report)
    if quantization is not None:
        clean_up_quantized(model)
    return model


def _architecture(config: Any) -> Any:
    """The class of a config's model."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    return type(model)


def _name(model: Any, path: str | Path) -> None:
    """Add what transformers reads beside the weights when it is given a directory."""
    model.config.name_or_path = model.name_or_path = str(path)
    if model.can_generate() and (Path(path) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(
            path, local_files_only=True
        )


def _check_all_loaded(
    path: str | Path,
    model: Any,
    report: Mapping[str, Any],
) -> None:
    """Raise UserError if a weight was not in the checkpoint; `report` is transformers' loading info."""
    # transformers only warns of missing weights, and counts tied ones (an lm_head) among them.
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = sorted(set(report["missing_keys"]) - tied)
    if missing:
        raise UserError(
            f"model.path {path}: expected every weight, got a checkpoint without {len(missing)} of them "
            f"({missing[0]}, …); they would stay random: copy the checkpoint again"
        )

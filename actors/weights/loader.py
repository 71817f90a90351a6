"""Inside the engine's process: checkpoints that the pinned transformers saved, read as if the hub had them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from actors.vllm_api import DefaultModelLoader, LoadConfig, register_model_loader
from common.checkpoint.layout import layout_of

READABLE = "readable"
"""vLLM's `load_format` for checkpoints whose names or shapes it does not read."""
_MISTRALS_FILES = "consolidated*.safetensors"
"""Where these are, vLLM prefers Mistral's own formats, and a learner's names would be unknown to it."""
_FORMATS = ("config_format", "load_format", "tokenizer_mode")


def load_arguments(model_path: str) -> dict[str, Any]:
    """vLLM engine arguments for reading this checkpoint: none for one that vLLM reads as transformers does."""
    arguments: dict[str, Any] = {}
    if any(Path(model_path).glob(_MISTRALS_FILES)):
        arguments |= dict.fromkeys(_FORMATS, "hf")
    if not layout_of(model_path).is_readable:
        arguments["load_format"] = READABLE
    return arguments


@register_model_loader(READABLE)
class ReadableLoader(DefaultModelLoader):  # type: ignore[misc]
    """vLLM's loader, with every tensor renamed as it is read."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(replace(load_config, load_format="hf"))

    def get_all_weights(
        self,
        model_config: Any,
        model: torch.nn.Module,
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        layout = layout_of(model_config.model)
        for name, tensor in super().get_all_weights(model_config, model):
            yield layout.readable(name, tensor)

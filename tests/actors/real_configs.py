"""Config files of published models, as the engine reads them: all that a full vLLM configuration needs of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from tests.cluster.planner.model_configs import CONFIGS

ARCHITECTURES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
}
NEMO = {
    "model_type": "mistral",
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 131_072,
    "max_position_embeddings": 1_024_000,
}
QWEN25_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 151_674,
    "max_position_embeddings": 32_768,
}
GEMMA_4B = {
    "model_type": "gemma3_text",
    "hidden_size": 2560,
    "num_hidden_layers": 34,
    "intermediate_size": 10240,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}


def all_configs() -> dict[str, dict[str, Any]]:
    """Name -> config.json. What is not said here is the family's default in transformers."""
    configs = {name: dict(config) for name, config in CONFIGS.items()}
    configs["InternVL3-8B-hf"] = _filled(
        transformers.InternVLConfig, text_config=QWEN25_7B
    )
    configs["gemma-3-4b-it"] = _filled(transformers.Gemma3Config, text_config=GEMMA_4B)
    # Its defaults are Mistral-Small-3.1-24B's.
    configs["Mistral-Small-3.1-24B"] = _filled(transformers.Mistral3Config)
    configs["pixtral-12b"] = _filled(
        transformers.LlavaConfig,
        text_config=NEMO,
        vision_config={"model_type": "pixtral"},
    )
    for config in configs.values():
        config["architectures"] = [ARCHITECTURES[config["model_type"]]]
        config["dtype"] = "bfloat16"
    return configs


def _filled(config_class: Any, **parts: Any) -> dict[str, Any]:
    text = config_class(**parts).to_json_string(use_diff=False)
    config: dict[str, Any] = json.loads(text)
    return config


def write_all(root: Path) -> dict[str, Path]:
    """Name -> a folder with its config.json alone."""
    folders = {}
    for name, config in all_configs().items():
        folders[name] = root / name
        folders[name].mkdir()
        (folders[name] / "config.json").write_text(json.dumps(config))
    return folders

"""Config files of real models, written by hand from their published sizes: all that the planner reads of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ANYRES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


def _llava(family: str, text: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {
        "model_type": family,
        "text_config": {"model_type": "llama", "max_position_embeddings": 4096, **text},
        "vision_config": CLIP_L,
        "image_seq_length": 576,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        **others,
    }


def _sizes(
    width: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }


def _qwen25(text: dict[str, Any], vision_inner: int) -> dict[str, Any]:
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": vision_inner,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "out_hidden_size": text["hidden_size"],
    }
    rope = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [16, 24, 24],
    }
    return {
        "model_type": "qwen2_5_vl",
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "max_position_embeddings": 128_000,
            "rope_parameters": rope,
            **text,
        },
        "vision_config": vision,
        "tie_word_embeddings": False,
    }


def _qwen3(text: dict[str, Any]) -> dict[str, Any]:
    vision = {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
        "out_hidden_size": text["hidden_size"],
    }
    rope = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    }
    return {
        "model_type": "qwen3_vl",
        "text_config": {
            "model_type": "qwen3_vl_text",
            "max_position_embeddings": 262_144,
            "head_dim": 128,
            "rope_parameters": rope,
            **text,
        },
        "vision_config": vision,
        "tie_word_embeddings": False,
    }


VICUNA = _sizes(4096, 11008, 32, 32, 32, 32_064)
YI = _sizes(7168, 20480, 60, 56, 8, 64_064)
CONFIGS = {
    "llava-1.5-7b-hf": _llava("llava", VICUNA),
    "llava-v1.6-vicuna-7b-hf": _llava(
        "llava_next", VICUNA, image_grid_pinpoints=ANYRES
    ),
    "llava-v1.6-34b-hf": _llava("llava_next", YI, image_grid_pinpoints=ANYRES),
    "Qwen2.5-VL-7B-Instruct": _qwen25(_sizes(3584, 18944, 28, 28, 4, 152_064), 3420),
    "Qwen2.5-VL-32B-Instruct": _qwen25(_sizes(5120, 27648, 64, 40, 8, 152_064), 3456),
    "Qwen2.5-VL-72B-Instruct": _qwen25(_sizes(8192, 29568, 80, 64, 8, 152_064), 3456),
    "Qwen3-VL-8B-Instruct": _qwen3(_sizes(4096, 12288, 36, 32, 8, 151_936)),
    "Qwen3-VL-32B-Instruct": _qwen3(_sizes(5120, 25600, 64, 64, 8, 151_936)),
}


MOE = _qwen3(
    {
        **_sizes(256, 512, 2, 4, 2, 1000),
        "model_type": "qwen3_vl_moe_text",
        "moe_intermediate_size": 128,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "head_dim": 64,
    }
) | {"model_type": "qwen3_vl_moe"}
"""A small mixture of experts: 2 of 8 for a token."""


def write(name: str, root: Path) -> Path:
    """A folder with the model's config.json alone."""
    config = MOE if name == "moe" else CONFIGS[name]
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder

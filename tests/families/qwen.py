"""Qwen2.5-VL, Qwen3-VL, Qwen3-VL-MoE and Qwen3.5: a vision transformer that merges four patches to a token."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from tests.families.case import Case, Weights, text_settings
from tests.families.tokenizers import CHATML, tokenizer_of

MEDIA = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_VISION = {
    "depth": 3,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
}
_QWEN3_VISION = {**_VISION, "patch_size": 16, "num_position_embeddings": 64}
SIZES = ((128, 96), (96, 160), (60, 70))


def _tokenizer() -> Any:
    return tokenizer_of(
        ("<|im_start|>", "<|im_end|>", *MEDIA.values()),
        bos=None,
        eos="<|im_end|>",
        roles={
            "image_token": MEDIA["image_token_id"],
            "video_token": MEDIA["video_token_id"],
            "vision_bos_token": MEDIA["vision_start_token_id"],
            "vision_eos_token": MEDIA["vision_end_token_id"],
        },
    )


def _media_ids(tokenizer: Any) -> dict[str, int]:
    token_ids = tokenizer.convert_tokens_to_ids(list(MEDIA.values()))
    return dict(zip(MEDIA, token_ids, strict=True))


def _processor(kind: Any, tokenizer: Any, patch: int) -> Any:
    side = 2 * patch
    patches: dict[str, Any] = {
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": side * side, "longest_edge": side * side * 64},
    }
    return kind(
        image_processor=hf.Qwen2VLImageProcessor(**patches),
        tokenizer=tokenizer,
        video_processor=hf.Qwen2VLVideoProcessor(**patches),
        chat_template=CHATML.replace("IMAGE", _IMAGE),
    )


def _rope(**more: Any) -> dict[str, Any]:
    """Positions in time, height and width; the head's 32 entries have 16 frequencies."""
    return {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [4, 6, 6],
        **more,
    }


def _qwen2_5_vl() -> tuple[Any, Any]:
    """Patches of 14 pixels; windows of 4 x 4 patches in all blocks but the second."""
    tokenizer = _tokenizer()
    text = text_settings(tokenizer, rope_parameters=_rope())
    # Its heads have no width of their own.
    del text["head_dim"]
    vision = {
        **_VISION,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    config = hf.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        tie_word_embeddings=False,
        **_media_ids(tokenizer),
    )
    processor = _processor(hf.Qwen2_5_VLProcessor, tokenizer, 14)
    return hf.Qwen2_5_VLForConditionalGeneration(config).float(), processor


def _qwen3_vl() -> tuple[Any, Any]:
    """DeepStack: the language model's first layer adds what vision block 0 gives."""
    tokenizer = _tokenizer()
    rope = _rope(mrope_interleaved=True)
    config = hf.Qwen3VLConfig(
        vision_config={**_QWEN3_VISION, "deepstack_visual_indexes": [0]},
        text_config=text_settings(tokenizer, rope_parameters=rope),
        tie_word_embeddings=False,
        **_media_ids(tokenizer),
    )
    processor = _processor(hf.Qwen3VLProcessor, tokenizer, 16)
    return hf.Qwen3VLForConditionalGeneration(config).float(), processor


def _qwen3_vl_moe() -> tuple[Any, Any]:
    """Four experts in each layer, two of them for a token; no matrix is square, so that none is transposed unseen."""
    tokenizer = _tokenizer()
    text = text_settings(
        tokenizer,
        rope_parameters=_rope(mrope_interleaved=True),
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        # Published configurations say it and vLLM reads it; transformers does so in any case.
        norm_topk_prob=True,
    )
    config = hf.Qwen3VLMoeConfig(
        vision_config={**_QWEN3_VISION, "deepstack_visual_indexes": [0]},
        text_config=text,
        tie_word_embeddings=False,
        **_media_ids(tokenizer),
    )
    processor = _processor(hf.Qwen3VLProcessor, tokenizer, 16)
    return hf.Qwen3VLMoeForConditionalGeneration(config).float(), processor


def _qwen3_5() -> tuple[Any, Any]:
    """A layer of gated delta rule, whose memory is a state, and one of attention with a gate."""
    tokenizer = _tokenizer()
    rope = _rope(
        mrope_interleaved=True, mrope_section=[2, 1, 1], partial_rotary_factor=0.25
    )
    text = text_settings(
        tokenizer,
        rope_parameters=rope,
        layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    )
    config = hf.Qwen3_5Config(
        vision_config=_QWEN3_VISION,
        text_config=text,
        tie_word_embeddings=False,
        **_media_ids(tokenizer),
    )
    processor = _processor(hf.Qwen3VLProcessor, tokenizer, 16)
    return hf.Qwen3_5ForConditionalGeneration(config).float(), processor


def _next_token_module(weights: Weights) -> Weights:
    """Qwen3.5's layer for speculative decoding, `mtp.*`: that of an attention layer, behind two norms and a matrix."""
    layer = "model.language_model.layers.1."
    module = {}
    for name, value in weights.items():
        if name.startswith(layer):
            module["mtp.layers.0." + name.removeprefix(layer)] = torch.clone(value)
    norm = weights["model.language_model.norm.weight"]
    width = len(norm)
    module["mtp.fc.weight"] = 0.1 * torch.randn(width, 2 * width)
    for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        module[f"mtp.{name}.weight"] = torch.clone(norm)
    return module


QWEN2_5_VL = Case(
    "qwen2_5_vl",
    "Qwen2.5-VL (Qwen/Qwen2.5-VL-7B-Instruct)",
    _qwen2_5_vl,
    ((r"model\.language_model\.", "model."), (r"model\.visual\.", "visual.")),
    SIZES,
    is_shortened=True,
)
QWEN3_VL = Case(
    "qwen3_vl", "Qwen3-VL (Qwen/Qwen3-VL-8B-Instruct)", _qwen3_vl, (), SIZES
)
QWEN3_VL_MOE = Case(
    "qwen3_vl_moe",
    "Qwen3-VL-MoE (Qwen/Qwen3-VL-30B-A3B-Instruct)",
    _qwen3_vl_moe,
    (),
    SIZES,
    transposed=(".experts.gate_up_proj", ".experts.down_proj"),
    remark="adapters go to attention alone: experts are packed tensors",
)
# vLLM's gated delta rule takes bfloat16 alone on CPU, and its rounding of sums is not transformers'.
QWEN3_5 = Case(
    "qwen3_5",
    "Qwen3.5 (Qwen/Qwen3.5-27B)",
    _qwen3_5,
    (),
    SIZES,
    checkpoint_only=_next_token_module,
    engine_dtype="bfloat16",
    engine_tolerance=0.1,
    # transformers computes the rule in float32 in any model.
    learner_tolerance=1e-4,
    rows_because="the language model has layers with linear attention, whose state after a prompt no mask can hand to "
    "its answers",
    remark="engines on a CPU need `model.dtype = bfloat16`; default adapters skip the linear attention",
)

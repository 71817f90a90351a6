"""Tiny random models of the other families, built once beside those of tests/tiny_models.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from common.checkpoint.saving import save_model
from common.shapes.model import build_tokenizer
from common.worlds.policy import BOS, CHAT_TEMPLATE, EOS, IMAGE, PAD
from tests.families.case import widen
from tests.tiny_models import CACHE

_FORMAT = 3
HIDDEN = 64
SIDE, PATCH = 32, 8
"""Of a LLaVA-NeXT tile: 16 tokens."""
QWEN_MEDIA = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}


def tiny_llava_next() -> Path:
    """AnyRes with tiles of 16 tokens: up to 2 x 2 of them, a newline token per row, and the whole image's 16."""
    return _built("llava_next", _llava_next)


def tiny_qwen() -> Path:
    """Qwen2.5-VL with patches of 14 pixels, four to a token, so an image of 112 x 84 has 4 x 3 tokens."""
    return _built("qwen2_5_vl", _qwen)


def tiny_qwen3() -> Path:
    """Qwen3-VL with patches of 16 pixels, four to a token, so an image of 128 x 96 has 4 x 3 tokens."""
    return _built("qwen3_vl", _qwen3)


def _built(name: str, build: Callable[[], tuple[Any, Any]]) -> Path:
    target = CACHE / f"family-v{_FORMAT}-{name}"
    if not target.exists():
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
        torch.manual_seed(0)
        model, processor = build()
        widen(model)
        model.config.save_pretrained(partial)
        model.generation_config.save_pretrained(partial)
        processor.save_pretrained(partial)
        save_model(model, partial)
        try:
            partial.rename(target)
        except OSError:
            shutil.rmtree(partial)
    return target


def _text(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.15,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }


def _llava_next() -> tuple[Any, Any]:
    tokenizer = build_tokenizer()
    pinpoints = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    vision = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=HIDDEN,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=LlamaConfig(head_dim=32, **_text(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=False,
        architectures=["LlavaNextForConditionalGeneration"],
    )
    size = {"height": SIDE, "width": SIDE}
    images = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=size, image_grid_pinpoints=pinpoints
    )
    processor = LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return LlavaNextForConditionalGeneration(config).float(), processor


def _qwen() -> tuple[Any, Any]:
    tokenizer = _qwen_tokenizer()
    vision = {
        "depth": 3,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 56,
        "out_hidden_size": HIDDEN,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**_text(tokenizer), "rope_parameters": _grid_rope()},
        **_media_ids(tokenizer),
        tie_word_embeddings=False,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
    )
    processor = Qwen2_5_VLProcessor(**_qwen_parts(tokenizer, 14))
    return Qwen2_5_VLForConditionalGeneration(config).float(), processor


def _qwen3() -> tuple[Any, Any]:
    tokenizer = _qwen_tokenizer()
    vision = {
        "depth": 3,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_heads": 2,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
        "out_hidden_size": HIDDEN,
    }
    rope = {**_grid_rope(), "mrope_interleaved": True}
    config = Qwen3VLConfig(
        vision_config=vision,
        text_config={**_text(tokenizer), "head_dim": 32, "rope_parameters": rope},
        **_media_ids(tokenizer),
        tie_word_embeddings=False,
        architectures=["Qwen3VLForConditionalGeneration"],
    )
    processor = Qwen3VLProcessor(**_qwen_parts(tokenizer, 16))
    return Qwen3VLForConditionalGeneration(config).float(), processor


def _grid_rope() -> dict[str, Any]:
    return {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [4, 6, 6],
    }


def _qwen_tokenizer() -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer().backend_tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={
            "image_token": QWEN_MEDIA["image_token_id"],
            "video_token": QWEN_MEDIA["video_token_id"],
            "vision_bos_token": QWEN_MEDIA["vision_start_token_id"],
            "vision_eos_token": QWEN_MEDIA["vision_end_token_id"],
        },
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _media_ids(tokenizer: Any) -> dict[str, int]:
    token_ids = tokenizer.convert_tokens_to_ids(list(QWEN_MEDIA.values()))
    return dict(zip(QWEN_MEDIA, token_ids, strict=True))


def _qwen_parts(tokenizer: Any, patch: int) -> dict[str, Any]:
    """What the processors of both families are made of."""
    side = 2 * patch
    patches: dict[str, Any] = {
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": side * side, "longest_edge": side * side * 64},
    }
    return {
        "image_processor": Qwen2VLImageProcessor(**patches),
        "tokenizer": tokenizer,
        "video_processor": Qwen2VLVideoProcessor(**patches),
        "chat_template": CHAT_TEMPLATE.replace(
            IMAGE, "<|vision_start|><|image_pad|><|vision_end|>"
        ),
    }

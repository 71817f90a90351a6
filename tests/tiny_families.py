"""Tiny random models of the other families, built once beside those of tests/tiny_models.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
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
)

from common.model_parts import vision_side_parameters
from common.shapes.model import BOS, CHAT_TEMPLATE, EOS, IMAGE, PAD, build_tokenizer
from common.weights import hub_name
from tests.tiny_models import CACHE

_FORMAT = 2
HIDDEN = 64
SIDE, PATCH = 32, 8
"""Of a LLaVA-NeXT tile: 16 tokens."""
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"


def tiny_llava_next() -> Path:
    """AnyRes with tiles of 16 tokens: up to 2 x 2 of them, a newline token per row, and the whole image's 16."""
    return _built("llava_next", _llava_next)


def tiny_qwen() -> Path:
    """Qwen2.5-VL with patches of 14 pixels, four to a token, so an image of 112 x 84 has 4 x 3 tokens."""
    return _built("qwen2_5_vl", _qwen)


def _built(name: str, build: Callable[[], tuple[Any, Any]]) -> Path:
    target = CACHE / f"families-v{_FORMAT}-{name}"
    if not target.exists():
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
        torch.manual_seed(0)
        model, processor = build()
        _widen(model)
        model.config.save_pretrained(partial)
        model.generation_config.save_pretrained(partial)
        processor.save_pretrained(partial)
        weights = {key: value.contiguous() for key, value in model.state_dict().items()}
        if name == "llava_next":
            weights = {hub_name(key): value for key, value in weights.items()}
        save_file(
            weights, str(partial / "model.safetensors"), metadata={"format": "pt"}
        )
        try:
            partial.rename(target)
        except OSError:
            shutil.rmtree(partial)
    return target


def _widen(model: torch.nn.Module) -> None:
    """Pictures must change the answers."""
    with torch.no_grad():
        for parameter in vision_side_parameters(model):
            if parameter.ndim >= 2:
                parameter.mul_(4)


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
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer().backend_tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={
            "image_token": IMAGE_PAD,
            "video_token": VIDEO_PAD,
            "vision_bos_token": VISION_START,
            "vision_eos_token": VISION_END,
        },
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    config = _qwen_config(tokenizer)
    patches: dict[str, Any] = {
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64},
    }
    image_text = f"{VISION_START}{IMAGE_PAD}{VISION_END}"
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**patches),
        chat_template=CHAT_TEMPLATE.replace(IMAGE, image_text),
    )
    return Qwen2_5_VLForConditionalGeneration(config).float(), processor


def _qwen_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
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
    text = _text(tokenizer)
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [4, 6, 6],
    }
    return Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_PAD),
        video_token_id=tokenizer.convert_tokens_to_ids(VIDEO_PAD),
        vision_start_token_id=tokenizer.convert_tokens_to_ids(VISION_START),
        vision_end_token_id=tokenizer.convert_tokens_to_ids(VISION_END),
        tie_word_embeddings=False,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
    )

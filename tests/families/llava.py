"""LLaVA-1.5 and LLaVA-NeXT: a CLIP tower before a Llama."""

from __future__ import annotations

from typing import Any

import transformers as hf

from common.shapes.model import build_tokenizer
from common.worlds.policy import CHAT_TEMPLATE, IMAGE
from tests.families.case import Case, text_settings

SIDE, PATCH = 32, 8
"""Of a picture or tile: 16 tokens."""
PUBLISHED = (
    (r"model\.language_model\.", "language_model.model."),
    (r"lm_head\.", "language_model.lm_head."),
    (r"model\.vision_tower\.", "vision_tower.vision_model."),
    (r"model\.", ""),
)
_PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def _settings(tokenizer: Any) -> dict[str, Any]:
    vision = hf.CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=64,
    )
    return {
        "vision_config": vision,
        "text_config": hf.LlamaConfig(**text_settings(tokenizer)),
        "image_token_index": tokenizer.convert_tokens_to_ids(IMAGE),
        "image_seq_length": (SIDE // PATCH) ** 2,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
    }


def _processor(kind: Any, tokenizer: Any, images: Any) -> Any:
    return kind(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def _llava() -> tuple[Any, Any]:
    tokenizer = build_tokenizer()
    config = hf.LlavaConfig(**_settings(tokenizer))
    side = {"height": SIDE, "width": SIDE}
    images = hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=side)
    processor = _processor(hf.LlavaProcessor, tokenizer, images)
    return hf.LlavaForConditionalGeneration(config).float(), processor


def _llava_next() -> tuple[Any, Any]:
    """AnyRes: up to 2 x 2 tiles, a newline token per row, and the whole picture's 16 tokens."""
    tokenizer = build_tokenizer()
    config = hf.LlavaNextConfig(**_settings(tokenizer), image_grid_pinpoints=_PINPOINTS)
    side = {"height": SIDE, "width": SIDE}
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=side, image_grid_pinpoints=_PINPOINTS
    )
    processor = _processor(hf.LlavaNextProcessor, tokenizer, images)
    return hf.LlavaNextForConditionalGeneration(config).float(), processor


LLAVA = Case(
    "llava",
    "LLaVA-1.5 (llava-hf/llava-1.5-7b-hf)",
    _llava,
    PUBLISHED,
    sizes=((48, 48), (40, 56)),
    is_shortened=True,
)
LLAVA_NEXT = Case(
    "llava_next",
    "LLaVA-NeXT (llava-hf/llava-v1.6-vicuna-7b-hf)",
    _llava_next,
    PUBLISHED,
    sizes=((64, 64), (90, 40), (40, 80)),
    is_shortened=True,
)

"""Pixtral (a LLaVA of transformers) and Mistral-3: pictures of any size, a break token behind each row of patches."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.families.case import Case, text_settings
from tests.families.tokenizers import MISTRAL, tokenizer_of

SIDE = 64
"""Longer pictures are scaled down to it, in pixels."""
_TOKENS = ("<s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
_PUBLISHED = (
    (r"model\.language_model\.", "language_model.model."),
    (r"lm_head\.", "language_model.lm_head."),
    (r"model\.", ""),
)
SIZES = ((64, 64), (64, 32), (20, 48))


def _vision(patch: int) -> hf.PixtralVisionConfig:
    return hf.PixtralVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=32,
        image_size=SIDE,
        patch_size=patch,
        hidden_act="silu",
    )


def _parts(patch: int, merge: int) -> tuple[Any, Any]:
    """Tokenizer and processor; `merge` x `merge` patches of `patch` pixels make a token."""
    tokenizer = tokenizer_of(_TOKENS, bos="<s>", eos="</s>")
    images = hf.PixtralImageProcessor(
        size={"longest_edge": SIDE}, patch_size={"height": patch, "width": patch}
    )
    processor = hf.PixtralProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch,
        spatial_merge_size=merge,
        chat_template=MISTRAL.replace("IMAGE", "[IMG]"),
    )
    return tokenizer, processor


def _pixtral() -> tuple[Any, Any]:
    tokenizer, processor = _parts(patch=16, merge=1)
    config = hf.LlavaConfig(
        vision_config=_vision(16),
        text_config=hf.MistralConfig(**text_settings(tokenizer), sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=1,
        tie_word_embeddings=False,
    )
    return hf.LlavaForConditionalGeneration(config).float(), processor


def _mistral3() -> tuple[Any, Any]:
    """Four patches are merged to a token before the projector."""
    tokenizer, processor = _parts(patch=8, merge=2)
    config = hf.Mistral3Config(
        vision_config=_vision(8),
        text_config=hf.MistralConfig(**text_settings(tokenizer), sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return hf.Mistral3ForConditionalGeneration(config).float(), processor


PIXTRAL = Case(
    "pixtral", "Pixtral (mistral-community/pixtral-12b)", _pixtral, _PUBLISHED, SIZES
)
MISTRAL3 = Case(
    "mistral3",
    "Mistral-3 (mistralai/Mistral-Small-3.1-24B-Instruct-2503)",
    _mistral3,
    _PUBLISHED,
    SIZES,
)

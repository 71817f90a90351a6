"""InternVL as transformers has it (InternVL3-*-hf): tiles, a ViT of its own kind, pixel shuffle, Qwen2."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.families.case import Case, text_settings
from tests.families.tokenizers import CHATML, tokenizer_of

SIDE, PATCH = 32, 4
"""Of a tile: 8 x 8 patches, four of which become a token."""
NUM_TOKENS = (SIDE // PATCH // 2) ** 2
_MEDIA = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def _internvl() -> tuple[Any, Any]:
    tokens = ("<|im_start|>", "<|im_end|>", *_MEDIA.values())
    tokenizer = tokenizer_of(tokens, bos=None, eos="<|im_end|>", roles=_MEDIA)
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "attention_bias": True,
        "image_size": [SIDE, SIDE],
        "patch_size": [PATCH, PATCH],
        "layer_scale_init_value": 0.5,
    }
    text = text_settings(tokenizer)
    # Its heads have no width of their own.
    del text["head_dim"]
    config = hf.InternVLConfig(
        vision_config=vision,
        text_config=hf.Qwen2Config(**text),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=NUM_TOKENS,
        tie_word_embeddings=False,
    )
    side = {"height": SIDE, "width": SIDE}
    images = hf.GotOcr2ImageProcessor(
        size=side, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = hf.InternVLProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size=side),
        image_seq_length=NUM_TOKENS,
        chat_template=CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    return hf.InternVLForConditionalGeneration(config).float(), processor


INTERNVL = Case(
    "internvl",
    "InternVL-HF (OpenGVLab/InternVL3-1B-hf)",
    _internvl,
    (
        (r"model\.language_model\.", "language_model.model."),
        (r"lm_head\.", "language_model.lm_head."),
        (r"model\.", ""),
    ),
    # One tile, two and the whole, four and the whole.
    sizes=((32, 32), (64, 32), (64, 66)),
)

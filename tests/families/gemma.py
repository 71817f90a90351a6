"""Gemma-3: a SigLIP tower, picture tokens that see each other both ways, layers with a sliding window."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from tests.families.case import Case, text_settings
from tests.families.tokenizers import GEMMA, tokenizer_of

SIDE, PATCH = 64, 8
"""Of a picture: 8 x 8 patches, averaged to 4 x 4 tokens."""
NUM_TOKENS = 16
WINDOW = 24
"""Tokens that a layer with a sliding window sees; prompts are longer."""
_MEDIA = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}


def _gemma3() -> tuple[Any, Any]:
    tokens = ("<bos>", "<start_of_turn>", "<end_of_turn>", *_MEDIA.values())
    tokenizer = tokenizer_of(tokens, bos="<bos>", eos="<end_of_turn>", roles=_MEDIA)
    # As Gemma's own tokenizer has them; vLLM joins the newlines around a picture by them.
    tokenizer.add_tokens(["\n" * number for number in range(1, 5)])
    vision = hf.SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = hf.Gemma3TextConfig(
        **text_settings(
            tokenizer,
            tie_word_embeddings=True,
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=WINDOW,
            query_pre_attn_scalar=32,
        )
    )
    media = _media_ids(tokenizer)
    config = hf.Gemma3Config(
        vision_config=vision,
        text_config=text,
        mm_tokens_per_image=NUM_TOKENS,
        tie_word_embeddings=True,
        **media,
    )
    side = {"height": SIDE, "width": SIDE}
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size=side),
        tokenizer=tokenizer,
        image_seq_length=NUM_TOKENS,
        chat_template=GEMMA.replace("IMAGE", "<start_of_image>"),
    )
    model = hf.Gemma3ForConditionalGeneration(config).float()
    # It begins with zeros, and pictures would be nothing.
    torch.nn.init.normal_(
        model.model.multi_modal_projector.mm_input_projection_weight, std=0.15
    )
    return model, processor


def _media_ids(tokenizer: Any) -> dict[str, int]:
    names = ("boi_token_index", "eoi_token_index", "image_token_index")
    token_ids = tokenizer.convert_tokens_to_ids(list(_MEDIA.values()))
    return dict(zip(names, token_ids, strict=True))


GEMMA3 = Case(
    "gemma3",
    "Gemma-3 (google/gemma-3-4b-it)",
    _gemma3,
    (
        (r"model\.language_model\.", "language_model.model."),
        (r"model\.vision_tower\.", "vision_tower.vision_model."),
        (r"model\.", ""),
    ),
    sizes=((64, 64), (90, 40)),
    rows_because="image tokens attend to each other in both directions",
    runs_on_cpu=False,
    remark="engines on a CPU are refused: vLLM's CPU build lets image tokens see backwards alone",
)

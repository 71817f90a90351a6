"""SmolVLM: a picture is cut into tiles, each between row and column marks, and shown as a whole behind them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import transformers as hf

from tests.families.case import Case, text_settings
from tests.families.tokenizers import SMOLVLM, tokenizer_of

SIDE, PATCH = 32, 8
"""Of a tile: 4 x 4 patches, four of which become a token."""
NUM_TOKENS = 4
_MEDIA = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    "video_token": "<video>",
}
_ROWS = tuple(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))


def _smolvlm() -> tuple[Any, Any]:
    tokens = ("<|im_start|>", *_MEDIA.values(), *_ROWS)
    tokenizer = tokenizer_of(
        tokens, bos="<|im_start|>", eos="<end_of_utterance>", roles=_MEDIA
    )
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    config = hf.SmolVLMConfig(
        vision_config=vision,
        text_config=hf.LlamaConfig(**text_settings(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    images = hf.SmolVLMImageProcessor(
        size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}
    )
    processor = hf.SmolVLMProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=hf.SmolVLMVideoProcessor(
            size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}
        ),
        image_seq_len=NUM_TOKENS,
        chat_template=SMOLVLM.replace("IMAGE", "<image>"),
    )
    return hf.SmolVLMForConditionalGeneration(config).float(), processor


SMOLVLM_CASE = Case(
    "smolvlm",
    "SmolVLM (HuggingFaceTB/SmolVLM2-2.2B-Instruct)",
    _smolvlm,
    (),
    sizes=((32, 32), (64, 32), (64, 64)),
    missing_package=None if find_spec("num2words") else "num2words",
    remark="its processor needs the package num2words, which is not among the requirements",
)

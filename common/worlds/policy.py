"""The parts of a tiny policy: a LLaVA-1.5 configuration, a lossless tokenizer and the processor that ties them.

    picture -> 6 x 6 patches (four per grid cell) + CLS, CLS dropped -> projector -> Llama

How text maps to tokens:

    full text   <s>USER: <image>\\nDescribe the image. ASSISTANT:\\nThere is a red circle at the top.</s>
    prompt      tokenizer.encode(prompt text), with <image> repeated once per visual token. The template writes <s>
                itself; the tokenizer adds no special token.
    response    tokenizer.encode(response text) + [eos], without a leading space

Tokens of prompt and response, put together, are those of the whole text: encode(prompt) + encode(response) ==
encode(prompt + response). For the template ends in a newline, which before text is always a token of its own.
Decoding with `skip_special_tokens=True` gives the response text back, character by character.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from common.checkpoint.files import WHOLE
from common.checkpoint.saving import save_model

PATCHES_PER_SIDE = 6
NUM_IMAGE_TOKENS = PATCHES_PER_SIDE**2
MAX_POSITIONS = 1024
PIXEL_MEAN = 0.5
PIXEL_STD = 0.5

BOS, EOS, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT:\n' if message['role'] == 'assistant' else '' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:\n' }}{% endif %}"
)


FIRST_TURN = BOS + "USER: {image}\n{question} ASSISTANT:\n"
NEXT_TURN = "USER: {question} ASSISTANT:\n"
"""What the template makes of a question with the picture and of one that follows an answer."""


def tokenizer_of(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a world's texts: each of its words is one token, and any other text round-trips exactly."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=True
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        # More than the world has: merging ends when every word is one token.
        vocab_size=2000,
        min_frequency=1,
        special_tokens=[BOS, EOS, PAD, IMAGE],
        # All bytes, so that text of any other world has tokens, too.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        # Decoding would otherwise take out spaces before punctuation.
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=MAX_POSITIONS,
    )


def build_processor(
    tokenizer: PreTrainedTokenizerFast,
    image_size: int,
) -> LlavaProcessor:
    """The processor of pictures of `image_size` squared."""
    side = {"height": image_size, "width": image_size}
    images = CLIPImageProcessor(
        size=side,
        crop_size=side,
        do_center_crop=False,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=image_size // PATCHES_PER_SIDE,
        # Of the encoder's tokens the one additional one, CLS, is dropped.
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def random_policy(
    tokenizer: PreTrainedTokenizerFast,
    image_size: int,
) -> LlavaForConditionalGeneration:
    """A policy with random weights, float32, for pictures of `image_size` squared."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=image_size // PATCHES_PER_SIDE,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.get_vocab()[IMAGE],
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


def prompt_messages(question: str) -> list[dict[str, Any]]:
    """The one-turn conversation that puts `question` to the policy about one picture."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def save_policy(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    out: Path,
) -> None:
    """Write a plain Hugging Face directory; weights under the hub's LLaVA-1.5 names, which vLLM reads as well."""
    out.mkdir(parents=True, exist_ok=True)
    config = model.config
    config.architectures = ["LlavaForConditionalGeneration"]
    config.dtype = torch.float32
    config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    processor.save_pretrained(out)
    save_model(model, out)
    # safetensors may let only the owner read it, and the checkpoint is part of the repository.
    (out / WHOLE).chmod(0o644)

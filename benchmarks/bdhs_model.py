"""LLaVA-1.5's architecture with random weights, and prompts for it: for measuring speed, not answers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from common.images import ImageStore
from common.records import Message, Part, Prompt
from common.seeding import derive_seed
from common.shapes.model import CHAT_TEMPLATE, IMAGE, build_tokenizer
from common.shapes.render import render
from common.shapes.scenes import COLOURS, PLACES, SHAPES, split_scenes
from common.weights import hub_name

SIDE, PATCH = 336, 14
NUM_IMAGE_TOKENS = (SIDE // PATCH) ** 2
MAX_LENGTH = 1024
PICTURE_SIDE = 448


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths and depths. `vocabulary` 0 is the tokenizer's own (a few hundred tokens)."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vision_hidden: int
    vision_intermediate: int
    vision_layers: int
    vision_heads: int
    vocabulary: int = 0


SMALL = Shape(512, 1408, 8, 8, 160, 640, 5, 5)
"""28 million parameters; the tower's share of them is that of LLaVA-1.5-7B, 5 %."""
LLAVA_7B = Shape(4096, 11008, 32, 32, 1024, 4096, 24, 16, 32064)


def build(shape: Shape, out: Path, dtype: torch.dtype, device: str) -> int:
    """Write a model directory, weights under the hub's names; the number of parameters."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"<w{index}>" for index in range(shape.vocabulary - len(tokenizer))])
    config = _config(shape, tokenizer)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    config.architectures, config.dtype = ["LlavaForConditionalGeneration"], dtype
    config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    _processor(tokenizer).save_pretrained(out)
    weights = {hub_name(name): value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    return sum(parameter.numel() for parameter in model.parameters())


def _config(shape: Shape, tokenizer: Any) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=shape.vision_intermediate,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=2 * MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def _processor(tokenizer: Any) -> LlavaProcessor:
    size = {"height": SIDE, "width": SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def make_prompts(store: ImageStore, count: int, seed: int, num_sentences: int) -> list[Prompt]:
    """Pictures of their own for every seed; true answers of sentences of about 20 tokens, so tails of about 10."""
    message = Message("user", (Part("image"), Part("text", "Describe the image.")))
    scenes = split_scenes("train", count, seed=derive_seed(seed, "bdhs-benchmark"))
    prompts = []
    for index, scene in enumerate(scenes):
        rng = random.Random(derive_seed(seed, "answer", index))
        image = store.add(render(scene).resize((PICTURE_SIDE, PICTURE_SIDE)))
        answer = " ".join(_sentence(rng) for _ in range(num_sentences))
        prompts.append(Prompt(f"{seed}/{index}", (message,), (image,), reference=answer))
    return prompts


def _sentence(rng: random.Random) -> str:
    things = (f"a {rng.choice(COLOURS)} {rng.choice(SHAPES)} at the {rng.choice(PLACES)}" for _ in range(2))
    return f"There is {' and '.join(things)} in the image."

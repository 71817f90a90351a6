"""Tiny random LLaVA directories, built once under `.cache/tiny_models`, and prompts on random pictures.

Weights are drawn wide enough that pictures and prefixes change the answers: a stale cache shows.
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from common.checkpoint.saving import save_model
from common.data.images import ImageStore
from common.model_parts import is_vision_side
from common.records import Message, Part, Prompt
from common.shapes.model import build_tokenizer
from common.worlds.policy import CHAT_TEMPLATE, IMAGE

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "tiny_models"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class TinyLlava:
    """`patches`² image tokens of `patch` pixels. `favours_image`: sampling freely it would emit the image token."""

    patches: int = 8
    patch: int = 8
    hidden: int = 64
    layers: int = 2
    tied: bool = False
    favours_image: bool = False
    max_positions: int = 1024
    seed: int = 0

    @property
    def num_image_tokens(self) -> int:
        return self.patches**2

    @property
    def directory(self) -> Path:
        flags = "-tied" if self.tied else ""
        if self.favours_image:
            flags += "-favours"
        size = f"{self.patches}x{self.patch}-h{self.hidden}-l{self.layers}"
        name = f"llava-{size}-p{self.max_positions}-s{self.seed}{flags}"
        return CACHE / f"v{_FORMAT}-{name}"


def tiny_llava(recipe: TinyLlava = TinyLlava()) -> Path:
    """The model directory of a recipe; built at the first call, safe against other processes doing the same."""
    target = recipe.directory
    if not target.exists():
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        _build(recipe, partial)
        try:
            partial.rename(target)
        except OSError:
            shutil.rmtree(partial)
    return target


def _build(recipe: TinyLlava, out: Path) -> None:
    out.mkdir(parents=True)
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    model = LlavaForConditionalGeneration(_config(recipe, tokenizer)).float()
    image_token = tokenizer.convert_tokens_to_ids(IMAGE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_vision_side(name) and parameter.ndim >= 2:
                parameter.mul_(4)
        if recipe.favours_image:
            model.lm_head.weight.mul_(0.05)
            model.lm_head.weight[image_token].mul_(100)
    side = recipe.patches * recipe.patch
    size = {"height": side, "width": side}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size=size, crop_size=size, do_center_crop=False
        ),
        tokenizer=tokenizer,
        patch_size=recipe.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    model.config.architectures = ["LlavaForConditionalGeneration"]
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    processor.save_pretrained(out)
    save_model(model, out)


def _config(recipe: TinyLlava, tokenizer: object) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=recipe.hidden,
        intermediate_size=2 * recipe.hidden,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=recipe.patches * recipe.patch,
        patch_size=recipe.patch,
        projection_dim=recipe.hidden,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),  # type: ignore[arg-type]
        hidden_size=recipe.hidden,
        intermediate_size=2 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.hidden // 32,
        num_key_value_heads=recipe.hidden // 32,
        head_dim=32,
        max_position_embeddings=recipe.max_positions,
        initializer_range=0.15,
        bos_token_id=tokenizer.bos_token_id,  # type: ignore[attr-defined]
        eos_token_id=tokenizer.eos_token_id,  # type: ignore[attr-defined]
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[attr-defined]
        tie_word_embeddings=recipe.tied,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),  # type: ignore[attr-defined]
        image_seq_length=recipe.num_image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=recipe.tied,
    )


def picture(seed: int, side: int = 64) -> Image.Image:
    """A few coloured shapes on a coloured ground."""
    rng = random.Random(seed)
    colours = [tuple(rng.randint(0, 255) for _ in range(3)) for _ in range(4)]
    image = Image.new("RGB", (side, side), colours[0])
    draw = ImageDraw.Draw(image)
    for colour in colours[1:]:
        x = rng.randint(0, side * 2 // 3)
        y = rng.randint(0, side * 2 // 3)
        size = rng.randint(side // 8, side // 3)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + size, y + size), fill=colour)
    return image


def make_prompt(
    store: ImageStore, seed: int, text: str = "Describe the image.", side: int = 64
) -> Prompt:
    """A one-picture prompt."""
    message = Message("user", (Part("image"), Part("text", text)))
    return Prompt(f"prompt-{seed}", (message,), (store.add(picture(seed, side)),))

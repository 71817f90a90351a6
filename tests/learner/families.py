"""Tiny random models of four families in memory, with their processors; float64, wide enough that pictures count."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from common.chat import EncodedPrompt
from common.records import ImageRef, Message, Part, PreferencePair, Prompt, Response
from learner.encoded import EncodedPair
from tests.tiny_models import picture

FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl")
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


@dataclass(frozen=True, slots=True)
class Family:
    """A model in float64 and its processor; `image` is what stands for a picture in a prompt's text."""

    name: str
    model: Any
    processor: Any
    image: str

    def prompt(self, words: str, *seeds: int, side: int = 64) -> EncodedPrompt:
        """A prompt with these random pictures before its words."""
        pictures = [wide_picture(seed, side) for seed in seeds]
        text = self.image * len(seeds) + words
        inputs = dict(
            self.processor(
                text=[text],
                images=[pictures] if pictures else None,
                return_tensors="pt",
            )
        )
        tokens = tuple(inputs.pop("input_ids")[0].tolist())
        inputs.pop("attention_mask")
        inputs = {
            n: v.double() if v.is_floating_point() else v for n, v in inputs.items()
        }
        return EncodedPrompt(
            tokens, tokens.count(self.model.config.image_token_id), inputs
        )

    def pair(
        self,
        words: str,
        *seeds: int,
        chosen: tuple[int, ...],
        rejected: tuple[int, ...],
        **fields: Any,
    ) -> Any:
        """An encoded pair on such a prompt; pictures of one seed have one hash."""
        prompt = Prompt(
            "p",
            (Message("user", (Part("text", words),)),),
            tuple(ImageRef(f"{s:064x}", "") for s in seeds),
        )
        pair = PreferencePair(
            "pair", prompt, Response(""), Response(""), "test", **fields
        )
        return EncodedPair(pair, self.prompt(words, *seeds), chosen, rejected)


def wide_picture(seed: int, side: int) -> Image.Image:
    """Every second one is not square, so that tiles and grids differ."""
    image = picture(seed, side)
    return image.resize((2 * side, side)) if seed % 2 else image


def tokenizer(specials: tuple[str, ...], **roles: str) -> Any:
    """Single words of one letter and number, `a0 … z9`, and what a family needs."""
    words = [f"{letter}{digit}" for letter in "abcdefgh" for digit in range(10)]
    names = dict.fromkeys(["<unk>", *roles.values(), *specials, *words])
    inner = Tokenizer(
        models.WordLevel(
            {name: index for index, name in enumerate(names)}, unk_token="<unk>"
        )
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, additional_special_tokens=list(specials), **roles
    )


@cache
def family(name: str) -> Family:
    """Built once."""
    torch.manual_seed(0)
    model, processor, image = {"llava": _llava, "llava_next": _llava}.get(name, _qwen)(
        name
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim >= 2 and any(
                part in key for part in ("vision", "visual", "projector", "connector")
            ):
                parameter.mul_(4)
    return Family(name, model.double().eval(), processor, image)


def _llava(name: str) -> tuple[Any, Any, str]:
    tokens = tokenizer(
        ("<image>",),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    vision = hf.CLIPVisionConfig(
        **TOWER, image_size=32, patch_size=8, projection_dim=16
    )
    text = hf.LlamaConfig(vocab_size=len(tokens), head_dim=8, **TEXT)
    size: dict[str, Any] = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
    }
    common: dict[str, Any] = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": tokens.convert_tokens_to_ids("<image>"),
        "image_seq_length": 16,
    }
    options = {
        "patch_size": 8,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    if name == "llava":
        processor = hf.LlavaProcessor(
            image_processor=hf.CLIPImageProcessor(**size), tokenizer=tokens, **options
        )
        return (
            hf.LlavaForConditionalGeneration(hf.LlavaConfig(**common)),
            processor,
            "<image> ",
        )
    points = [[32, 64], [64, 32], [64, 64]]
    images = hf.LlavaNextImageProcessor(**size, image_grid_pinpoints=points)
    processor = hf.LlavaNextProcessor(
        image_processor=images, tokenizer=tokens, **options
    )
    model = hf.LlavaNextForConditionalGeneration(
        hf.LlavaNextConfig(**common, image_grid_pinpoints=points)
    )
    return model, processor, "<image> "


def _qwen(name: str) -> tuple[Any, Any, str]:
    tokens = tokenizer(QWEN, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = dict(
        zip(
            ("vision_start", "vision_end", "image", "video"),
            tokens.convert_tokens_to_ids(QWEN),
            strict=True,
        )
    )
    three = name == "qwen3_vl"
    patch = 16 if three else 14
    grid: dict[str, int] = {"patch_size": patch, "temporal_patch_size": 2}
    vision: dict[str, Any] = {
        "depth": 3,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        **grid,
    }
    vision |= {"spatial_merge_size": 2, "out_hidden_size": 32}
    vision |= (
        {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        if three
        else {"window_size": 56, "fullatt_block_indexes": [1]}
    )
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
    }
    text = {**TEXT, "vocab_size": len(tokens), "rope_parameters": rope}
    if three:
        text |= {"head_dim": 8, "rope_parameters": {**rope, "mrope_interleaved": True}}
    special = {f"{role}_token_id": number for role, number in ids.items()}
    config = (hf.Qwen3VLConfig if three else hf.Qwen2_5_VLConfig)(
        vision_config=vision, text_config=text, **special
    )
    model = (
        hf.Qwen3VLForConditionalGeneration
        if three
        else hf.Qwen2_5_VLForConditionalGeneration
    )(config)
    size = {"shortest_edge": patch * patch * 16, "longest_edge": patch * patch * 256}
    options = {**grid, "merge_size": 2, "size": size}
    processor = (hf.Qwen3VLProcessor if three else hf.Qwen2_5_VLProcessor)(
        image_processor=hf.Qwen2VLImageProcessor(**options),
        tokenizer=tokens,
        video_processor=hf.Qwen2VLVideoProcessor(**options),
    )
    return model, processor, "<|vision_start|> <|image_pad|> <|vision_end|> "

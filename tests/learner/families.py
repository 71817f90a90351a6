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
from common.model_parts import vision_side_parameters
from common.records import ImageRef, Message, Part, PreferencePair, Prompt, Response
from learner.batch.encoded import EncodedPair
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
        return self.encode(words, [wide_picture(seed, side) for seed in seeds])

    def encode(self, words: str, pictures: list[Image.Image]) -> EncodedPrompt:
        """A prompt with these pictures before its words, pixels in float64."""
        text = self.image * len(pictures) + words
        outputs = self.processor(
            text=[text],
            images=[pictures] if pictures else None,
            return_tensors="pt",
        )
        inputs = {}
        for name, value in outputs.items():
            if name in ("input_ids", "attention_mask"):
                continue
            if value.is_floating_point():
                value = value.double()
            inputs[name] = value
        tokens = tuple(outputs["input_ids"][0].tolist())
        num_image_tokens = tokens.count(self.model.config.image_token_id)
        return EncodedPrompt(tokens, num_image_tokens, inputs)

    def pair(
        self,
        words: str,
        *seeds: int,
        chosen: tuple[int, ...],
        rejected: tuple[int, ...],
        **fields: Any,
    ) -> Any:
        """An encoded pair on such a prompt; pictures of one seed have one hash."""
        message = Message("user", (Part("text", words),))
        images = tuple(ImageRef(f"{seed:064x}", "") for seed in seeds)
        prompt = Prompt("p", (message,), images)
        # The answers are given as tokens, so the record's texts do not matter.
        no_text = Response("")
        pair = PreferencePair("pair", prompt, no_text, no_text, "test", **fields)
        return EncodedPair(pair, self.prompt(words, *seeds), chosen, rejected)


def wide_picture(seed: int, side: int) -> Image.Image:
    """Every second one is not square, so that tiles and grids differ."""
    image = picture(seed, side)
    return image.resize((2 * side, side)) if seed % 2 else image


def tokenizer(specials: tuple[str, ...], **roles: str) -> Any:
    """Single words of one letter and number, `a0 … z9`, and what a family needs."""
    words = [f"{letter}{digit}" for letter in "abcdefgh" for digit in range(10)]
    # A role may be one of the special tokens, and has one id then.
    names = dict.fromkeys(["<unk>", *roles.values(), *specials, *words])
    vocabulary = {name: index for index, name in enumerate(names)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        additional_special_tokens=list(specials),
        **roles,
    )


@cache
def family(name: str) -> Family:
    """The tiny model and processor of a family; built once."""
    torch.manual_seed(0)
    build = _llava if name.startswith("llava") else _qwen
    model, processor, image = build(name)
    # Random pictures would else hardly change what the language model says.
    with torch.no_grad():
        for parameter in vision_side_parameters(model):
            if parameter.ndim >= 2:
                parameter.mul_(4)
    return Family(name, model.double().eval(), processor, image)


def _llava(name: str) -> tuple[Any, Any, str]:
    """LLaVA, or LLaVA-NeXT with tiles of 32 pixels."""
    tokens = tokenizer(
        ("<image>",),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    # What only LLaVA-NeXT has: the sizes, in pixels, that its tiles may add up to.
    tiles = {}
    config_class, model_class = hf.LlavaConfig, hf.LlavaForConditionalGeneration
    processor_class, image_class = hf.LlavaProcessor, hf.CLIPImageProcessor
    if name == "llava_next":
        tiles = {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
        config_class = hf.LlavaNextConfig
        model_class = hf.LlavaNextForConditionalGeneration
        processor_class = hf.LlavaNextProcessor
        image_class = hf.LlavaNextImageProcessor
    config = config_class(
        vision_config=hf.CLIPVisionConfig(
            **TOWER, image_size=32, patch_size=8, projection_dim=16
        ),
        text_config=hf.LlamaConfig(vocab_size=len(tokens), head_dim=8, **TEXT),
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        **tiles,
    )
    processor = processor_class(
        image_processor=image_class(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            **tiles,
        ),
        tokenizer=tokens,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return model_class(config), processor, "<image> "


def _qwen(name: str) -> tuple[Any, Any, str]:
    """Qwen2.5-VL or Qwen3-VL, four patches to a token."""
    tokens = tokenizer(QWEN, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    start, end, image, video = tokens.convert_tokens_to_ids(QWEN)
    config_class, model_class = (
        hf.Qwen2_5_VLConfig,
        hf.Qwen2_5_VLForConditionalGeneration,
    )
    processor_class = hf.Qwen2_5_VLProcessor
    patch = 14
    if name == "qwen3_vl":
        config_class, model_class = hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration
        processor_class = hf.Qwen3VLProcessor
        patch = 16
    config = config_class(
        vision_config=_qwen_vision(name, patch),
        text_config=_qwen_text(name, len(tokens)),
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )
    model = model_class(config)
    patch_area = patch * patch
    pixels: dict[str, Any] = {
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": patch_area * 16, "longest_edge": patch_area * 256},
    }
    processor = processor_class(
        image_processor=hf.Qwen2VLImageProcessor(**pixels),
        tokenizer=tokens,
        video_processor=hf.Qwen2VLVideoProcessor(**pixels),
    )
    return model, processor, "<|vision_start|> <|image_pad|> <|vision_end|> "


def _qwen_vision(name: str, patch: int) -> dict[str, Any]:
    vision: dict[str, Any] = {
        "depth": 3,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": patch,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": 32,
    }
    if name == "qwen3_vl":
        # DeepStack: blocks 0 and 1 are read as well as the last.
        vision["num_position_embeddings"] = 64
        vision["deepstack_visual_indexes"] = [0, 1]
    else:
        # Windows of 4 x 4 patches in all blocks but the second.
        vision["window_size"] = 56
        vision["fullatt_block_indexes"] = [1]
    return vision


def _qwen_text(name: str, num_words: int) -> dict[str, Any]:
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
    }
    text: dict[str, Any] = {**TEXT, "vocab_size": num_words, "rope_parameters": rope}
    if name == "qwen3_vl":
        text["head_dim"] = 8
        rope["mrope_interleaved"] = True
    return text

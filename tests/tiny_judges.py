"""Tiny random models that judges read: CLIP, SigLIP, reward models of texts, and one that sees."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from common.shapes.model import build_tokenizer
from reward.model_judges.reward_model import VALUE_BIAS, VALUE_WEIGHT
from tests.tiny_models import CACHE, TinyLlava, tiny_llava

MAX_TEXT = 16
_FORMAT = 1
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def cached(make: Callable[[Path], Path]) -> Path:
    """The folder of a model, built at the first call, safe against other processes doing the same."""
    target = CACHE / f"v{_FORMAT}-judge-{make.__name__}"
    if not target.exists():
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        make(partial)
        try:
            partial.rename(target)
        except OSError:
            shutil.rmtree(partial)
    return target


def _embedder_parts() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    tokenizer = build_tokenizer()
    # As CLIP's own: an end mark, at which texts are pooled, and padding behind it.
    tokenizer.padding_side = "right"
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end[0]}", special_tokens=[end]
    )
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": MAX_TEXT}
    text |= {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return tokenizer, text, {**SMALL, "image_size": 32, "patch_size": 8}


def tiny_clip(folder: Path) -> Path:
    """A CLIP of 16 text tokens."""
    torch.manual_seed(0)
    tokenizer, text, vision = _embedder_parts()
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    _save(CLIPModel(config), folder)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def tiny_siglip(folder: Path) -> Path:
    """A SigLIP of 16 text tokens."""
    torch.manual_seed(0)
    tokenizer, text, vision = _embedder_parts()
    config = SiglipConfig(text_config=text, vision_config=vision)
    images = SiglipImageProcessor(size={"height": 32, "width": 32})
    _save(SiglipModel(config), folder)
    SiglipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def tiny_text_reward_model(folder: Path, template: str | None) -> Path:
    """A Llama with three labels, or a BERT without a chat template."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    settings = {**SMALL, "vocab_size": len(tokenizer), "num_labels": 3}
    settings["pad_token_id"] = tokenizer.pad_token_id
    if template is None:
        _save(BertForSequenceClassification(BertConfig(**settings)), folder)
    else:
        _save(LlamaForSequenceClassification(LlamaConfig(**settings)), folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_text_value_model(folder: Path, template: str) -> Path:
    """A Llama with a value head."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    config = LlamaConfig(**SMALL, vocab_size=len(tokenizer))
    _save(LlamaForCausalLM(config), folder)
    tokenizer.save_pretrained(folder)
    _add_value_head(folder, 32)
    return folder


def tiny_seeing_value_model(folder: Path) -> Path:
    """A LLaVA with a value head."""
    recipe = TinyLlava(patches=4)
    shutil.copytree(tiny_llava(recipe), folder)
    _add_value_head(folder, recipe.hidden)
    return folder


def _save(model: Any, folder: Path) -> None:
    # Wide weights, so that texts and pictures make a difference that rounding does not hide.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)
    model.save_pretrained(folder)


def _add_value_head(folder: Path, hidden: int) -> None:
    """As TRL saves it: beside the model's own tensors."""
    torch.manual_seed(1)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[VALUE_WEIGHT] = torch.randn(1, hidden)
    tensors[VALUE_BIAS] = torch.randn(1)
    save_file(tensors, file, metadata={"format": "pt"})

"""LLaVA-1.5's architecture in any size, with random weights: for measuring speed, not answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import LlavaConfig, LlavaProcessor

IMAGE = "<image>"


@dataclass(frozen=True, slots=True)
class Size:
    """Widths and depths; `side` and `patch` in pixels. `vocabulary` 0: as many tokens as the tokenizer has.

    The defaults come to 42 million parameters with 32,000 tokens.
    """

    hidden: int = 384
    mlp: int = 1024
    layers: int = 8
    heads: int = 6
    vision_hidden: int = 256
    vision_mlp: int = 1024
    vision_layers: int = 4
    vision_heads: int = 4
    vocabulary: int = 0
    side: int = 336
    patch: int = 14

    @property
    def image_tokens(self) -> int:
        return (self.side // self.patch) ** 2


LLAVA_7B = Size(4096, 11008, 32, 32, 1024, 4096, 24, 16, 32_064)


def build(
    size: Size,
    tokenizer: Any,
    template: str,
    max_positions: int,
    out: Path,
    dtype: torch.dtype,
    device: str = "cpu",
    file_bytes: int = 100 << 30,
) -> int:
    """Write a model directory, weights under the hub's names; the number of parameters.

    Args:
        tokenizer: of `size.vocabulary` tokens, IMAGE among them.
        template: of a chat, written with the processor.
        device: where the weights are drawn; equal for equal arguments.
        file_bytes: largest size of one file of weights.
    """
    import torch
    from transformers import LlavaForConditionalGeneration

    from common.checkpoint.saving import save_model

    torch.manual_seed(0)
    config = config_of(size, tokenizer, max_positions)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    config.architectures, config.dtype = ["LlavaForConditionalGeneration"], dtype
    config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    processor_of(size, tokenizer, template).save_pretrained(out)
    save_model(model, out, file_bytes)
    return sum(parameter.numel() for parameter in model.parameters())


def config_of(size: Size, tokenizer: Any, max_positions: int) -> LlavaConfig:
    """Untied embeddings; the picture's features are the last but one layer's, without CLS."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=size.vision_hidden,
        intermediate_size=size.vision_mlp,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads,
        image_size=size.side,
        patch_size=size.patch,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=max_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=size.image_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def processor_of(size: Size, tokenizer: Any, template: str) -> LlavaProcessor:
    """Scales the shorter edge to `size.side` and crops."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    edges = {"height": size.side, "width": size.side}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": size.side}, crop_size=edges
        ),
        tokenizer=tokenizer,
        patch_size=size.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )

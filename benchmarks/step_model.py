"""A random model of LLaVA-1.5's architecture, random pairs, and the floating-point work that a DPO step must do."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import random_llava
from benchmarks.random_llava import IMAGE, LLAVA_7B, Size
from common.data.images import ImageStore
from common.records import Message, Part, PreferencePair, Prompt, Response

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
)
SPECIAL = {
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
}
MAX_POSITIONS = 8192


@dataclass(frozen=True, slots=True)
class StepSize(Size):
    """A model's size, and the lengths of a pair's texts in tokens."""

    vocabulary: int = 32_000
    prompt_words: int = 30
    completion_tokens: int = 100

    @property
    def prompt_tokens(self) -> int:
        return self.image_tokens + self.prompt_words


SIZES = {
    "issue": StepSize(),
    "smoke": StepSize(hidden=64, mlp=128, layers=2, heads=2, vocabulary=500, vision_hidden=64, vision_mlp=128, side=56,
                      vision_heads=2, prompt_words=6, completion_tokens=12),
    "sweep": StepSize(side=84),
    "7b": StepSize(*astuple(LLAVA_7B)),
}  # fmt: skip
"""`issue`: 42 M parameters; `sweep`: the same with 36 image tokens; `7b`: LLaVA-1.5-7B."""


def size_of(args: Any) -> StepSize:
    """The size that command-line arguments name, with their prompt length if they give one."""
    size = SIZES[args.size]
    return (
        replace(size, prompt_words=args.prompt_tokens - size.image_tokens)
        if args.prompt_tokens
        else size
    )


def build(size: StepSize, directory: Path, dtype: str) -> int:
    """Write model and processor, a token per word; returns the number of parameters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*SPECIAL.values(), IMAGE]
    names += [f"w{index}" for index in range(len(names), size.vocabulary)]
    vocabulary = {name: index for index, name in enumerate(names)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        additional_special_tokens=[IMAGE],
        chat_template=TEMPLATE,
        **SPECIAL,
    )
    return random_llava.build(
        size, tokenizer, TEMPLATE, MAX_POSITIONS, directory, getattr(torch, dtype)
    )


def make_pairs(
    size: StepSize, num: int, store: ImageStore, offline: bool, per_prompt: int = 1
) -> list[PreferencePair]:
    """Pairs on noise, equal for equal arguments; the end of sequence is one of the completion's tokens.

    Args:
        per_prompt: consecutive pairs with one prompt and picture.
    """
    rng = np.random.default_rng(0)

    first_word = len(SPECIAL) + 1

    def words(count: int) -> str:
        indices = rng.integers(first_word, size.vocabulary, count)
        return " ".join(f"w{index}" for index in indices)

    def noise() -> Image.Image:
        shape = (size.side, size.side, 3)
        return Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8))

    pairs = []
    for index in range(num):
        if index % per_prompt == 0:
            image = store.add(noise())
            question = Part("text", words(size.prompt_words))
            message = Message("user", (Part("image"), question))
            prompt = Prompt(f"{index}", (message,), (image,))
        # The end of sequence is the last token.
        chosen = Response(words(size.completion_tokens - 1))
        rejected = Response(words(size.completion_tokens - 1))
        pair = PreferencePair(
            id=f"{index}",
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            source="benchmark",
            weight_version=None if offline else 0,
        )
        pairs.append(pair)
    return pairs


def trl_row(pair: PreferencePair) -> dict[str, Any]:
    """The same pair as TRL's users write it."""

    def said(role: str, *content: dict[str, str]) -> list[dict[str, Any]]:
        return [{"role": role, "content": list(content)}]

    question = pair.prompt.messages[0].parts[1].text
    return {
        "images": [Image.open(pair.prompt.images[0].path)],
        "prompt": said("user", {"type": "image"}, {"type": "text", "text": question}),
        "chosen": said("assistant", {"type": "text", "text": pair.chosen.text}),
        "rejected": said("assistant", {"type": "text", "text": pair.rejected.text}),
    }


def must_flops(
    size: StepSize,
    num_pairs: int,
    cached: bool,
    lora: bool = False,
    per_prompt: int = 1,
) -> float:
    """Matrix work of a step that does each thing once and nothing that nobody reads: 2 per multiply-add.

    Read are the hidden states that predict a completion's token: the prompt's last and each completion's but its last.
    So a completion's last token is in no layer, and in the last layer all others have keys and values only. Attention
    counts what is visible: the prompt its lower triangle, a completion its prompt and its own triangle. Backward is a
    product for the inputs (but for those that nothing trained made) and one for the weights (full tuning only), for
    attention always twice its forward. The tower is frozen and runs once for both models, with LoRA the projector too.
    Element-wise work, norms, adapters and the optimizer count nothing.
    """
    prompt, pairs = size.prompt_tokens, num_pairs / per_prompt
    answers = 2 * per_prompt * (size.completion_tokens - 1)
    tokens, predicting, width = prompt + answers, 1 + answers, size.hidden
    seen = answers * (prompt + size.completion_tokens / 2)
    keys, rest = 2 * width**2, 2 * width**2 + 3 * width * size.mlp
    before = size.layers - 1
    linear = 2 * (before * tokens * (keys + rest) + tokens * keys + predicting * rest)
    linear += 2 * predicting * width * size.vocabulary
    attention = (
        4 * width * (before * (prompt * (prompt + 1) / 2 + seen) + prompt + seen)
    )
    times = 3 if cached else 4
    work = times * attention + (times - lora) * linear
    if lora:
        # Nothing trains behind the inputs of the first layer's queries, keys and values.
        first_queries = tokens if before else predicting
        work -= 2 * tokens * keys + 2 * first_queries * width**2
    return pairs * (work + _vision_flops(size) + _projector_flops(size, times, lora))


def _projector_flops(size: StepSize, times: int, lora: bool) -> float:
    """Two linear layers; nothing that trains is behind the first one's inputs."""
    first = 2 * size.image_tokens * size.vision_hidden * size.hidden
    second = 2 * size.image_tokens * size.hidden**2
    return first + second if lora else (times - 1) * first + times * second


def _vision_flops(size: StepSize) -> float:
    """The tower once, up to the layer that the projector reads."""
    patches = size.image_tokens + 1
    width = size.vision_hidden
    layer = 2 * patches * (4 * width**2 + 2 * width * size.vision_mlp)
    layer += 4 * patches**2 * width
    embedding = 2 * size.image_tokens * 3 * size.patch**2 * width
    return (size.vision_layers - 1) * layer + embedding

"""A random model of LLaVA-1.5's architecture, random pairs, and the floating-point work that a DPO step must do."""

from __future__ import annotations

import io
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
PHOTO = (640, 480)
"""Width and height of most pictures of COCO."""


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
    if not args.prompt_tokens:
        return size
    # The arguments count the image, a size does not.
    prompt_words = args.prompt_tokens - size.image_tokens
    return replace(size, prompt_words=prompt_words)


def build(
    size: StepSize,
    directory: Path,
    dtype: str,
    device: str = "cpu",
    file_bytes: int = 100 << 30,
) -> int:
    """Write model and processor, a token per word; returns the number of parameters.

    Args:
        device: where the weights are drawn.
        file_bytes: largest size of one file of weights.
    """
    import torch

    torch_dtype = getattr(torch, dtype)
    return random_llava.build(
        size,
        _tokenizer(size),
        TEMPLATE,
        MAX_POSITIONS,
        directory,
        torch_dtype,
        device,
        file_bytes,
    )


def _tokenizer(size: StepSize) -> Any:
    """A tokenizer of the words w6, w7, … behind the special tokens, one token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*SPECIAL.values(), IMAGE]
    names += [f"w{index}" for index in range(len(names), size.vocabulary)]
    vocabulary = {name: index for index, name in enumerate(names)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        additional_special_tokens=[IMAGE],
        chat_template=TEMPLATE,
        **SPECIAL,
    )


def make_pairs(
    size: StepSize,
    num: int,
    store: ImageStore,
    offline: bool,
    per_prompt: int = 1,
) -> list[PreferencePair]:
    """Pairs on random pictures, equal for equal arguments; the end of sequence is one of the completion's tokens.

    Args:
        per_prompt: consecutive pairs with one prompt and picture.
    """
    rng = np.random.default_rng(0)

    first_word = len(SPECIAL) + 1

    def words(count: int) -> str:
        indices = rng.integers(first_word, size.vocabulary, count)
        return " ".join(f"w{index}" for index in indices)

    pairs = []
    for index in range(num):
        if index % per_prompt == 0:
            image = store.add_bytes(_photo(rng))
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


def _photo(rng: np.random.Generator) -> bytes:
    """A JPEG of a photo's size and smoothness: random patches of colour, blurred, with a little noise."""
    width, height = PHOTO
    patches = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    blurred = Image.fromarray(patches).resize(PHOTO, Image.Resampling.BICUBIC)
    noise = rng.integers(-8, 9, (height, width, 3))
    pixels = (np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


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

    Args:
        cached: the reference's log-probs are on disk, so only the policy runs.
        per_prompt: pairs that share a prompt and its picture.
    """
    width = size.hidden
    prompt = size.prompt_tokens
    # Tokens in layers, and those of them that predict.
    answers = 2 * per_prompt * (size.completion_tokens - 1)
    tokens = prompt + answers
    predicting = 1 + answers
    layers_before_last = size.layers - 1

    # Linear layers. Per token: keys and values; queries, attention output and MLP; the head.
    keys = 2 * width**2
    rest = 2 * width**2 + 3 * width * size.mlp
    all_layers = layers_before_last * tokens * (keys + rest)
    last_layer = tokens * keys + predicting * rest
    head = predicting * width * size.vocabulary
    linear = 2 * (all_layers + last_layer + head)

    # Attention. Pairs of a query and a key that it sees; each is a score and a weighted value.
    seen_by_prompt = prompt * (prompt + 1) / 2
    seen_by_answers = answers * (prompt + size.completion_tokens / 2)
    seen_in_last_layer = prompt + seen_by_answers
    seen = layers_before_last * (seen_by_prompt + seen_by_answers) + seen_in_last_layer
    attention = 4 * width * seen

    # Policy forward, twice that for its backward, and the reference's forward.
    times = 3 if cached else 4
    # With LoRA no weight gradient.
    linear_times = times - lora
    work = times * attention + linear_times * linear
    if lora:
        # Nothing trains behind the inputs of the first layer's queries, keys and values.
        first_queries = tokens if layers_before_last else predicting
        work -= 2 * tokens * keys + 2 * first_queries * width**2
    vision = _vision_flops(size) + _projector_flops(size, times, lora)
    num_prompts = num_pairs / per_prompt
    return num_prompts * (work + vision)


def _projector_flops(size: StepSize, times: int, lora: bool) -> float:
    """Two linear layers; nothing that trains is behind the first one's inputs."""
    first = 2 * size.image_tokens * size.vision_hidden * size.hidden
    second = 2 * size.image_tokens * size.hidden**2
    if lora:
        # Frozen: once for both models.
        return first + second
    return (times - 1) * first + times * second


def _vision_flops(size: StepSize) -> float:
    """The tower once, up to the layer that the projector reads."""
    patches = size.image_tokens + 1
    width = size.vision_hidden
    layer = 2 * patches * (4 * width**2 + 2 * width * size.vision_mlp)
    layer += 4 * patches**2 * width
    embedding = 2 * size.image_tokens * 3 * size.patch**2 * width
    return (size.vision_layers - 1) * layer + embedding

"""The model of `benchmarks.bdhs`, and prompts for it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import random_llava
from benchmarks.random_llava import Size
from common.images import ImageStore
from common.records import Message, Part, Prompt
from common.seeding import derive_seed
from common.shapes.render import render
from common.shapes.scenes import COLOURS, PLACES, SHAPES, split_scenes

if TYPE_CHECKING:
    import torch

MAX_LENGTH = 1024
PICTURE_SIDE = 448

SMALL = Size(512, 1408, 8, 8, 160, 640, 5, 5)
"""28 million parameters; the tower's share of them is that of LLaVA-1.5-7B, 5 %."""
NUM_IMAGE_TOKENS = SMALL.image_tokens


def build(size: Size, out: Path, dtype: torch.dtype, device: str) -> int:
    """Write a model directory with the shapes world's tokenizer, filled up; the number of parameters."""
    from common.shapes.model import CHAT_TEMPLATE, build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.add_tokens(
        [f"<w{index}>" for index in range(size.vocabulary - len(tokenizer))]
    )
    return random_llava.build(
        size, tokenizer, CHAT_TEMPLATE, 2 * MAX_LENGTH, out, dtype, device
    )


def make_prompts(
    store: ImageStore, count: int, seed: int, num_sentences: int
) -> list[Prompt]:
    """Pictures of their own for every seed; true answers of sentences of about 20 tokens, so tails of about 10."""
    message = Message("user", (Part("image"), Part("text", "Describe the image.")))
    scenes = split_scenes("train", count, seed=derive_seed(seed, "bdhs-benchmark"))
    prompts = []
    for index, scene in enumerate(scenes):
        rng = random.Random(derive_seed(seed, "answer", index))
        image = store.add(render(scene).resize((PICTURE_SIDE, PICTURE_SIDE)))
        answer = " ".join(_sentence(rng) for _ in range(num_sentences))
        prompts.append(
            Prompt(f"{seed}/{index}", (message,), (image,), reference=answer)
        )
    return prompts


def _sentence(rng: random.Random) -> str:
    things = (
        f"a {rng.choice(COLOURS)} {rng.choice(SHAPES)} at the {rng.choice(PLACES)}"
        for _ in range(2)
    )
    return f"There is {' and '.join(things)} in the image."

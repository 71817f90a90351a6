"""The model of `benchmarks.bdhs`, and prompts for it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import random_llava
from benchmarks.random_llava import Size
from common.data.images import ImageStore
from common.records import Message, Part, Prompt
from common.seeding import derive_seed
from common.shapes.render import render
from common.shapes.scenes import COLOURS, SHAPES, split_scenes
from common.worlds.scenes import PLACES

if TYPE_CHECKING:
    import torch

MAX_LENGTH = 1024
PICTURE_SIDE = 448

SMALL = Size(
    512,
    1408,
    8,
    8,
    160,
    640,
    5,
    5,
)
"""28 million parameters; the vision encoder's share of them is that of LLaVA-1.5-7B, 5 %."""
NUM_IMAGE_TOKENS = SMALL.image_tokens


def build(
    size: Size,
    out: Path,
    dtype: torch.dtype,
    device: str,
) -> int:
    """Write a model directory with the shapes world's tokenizer, filled up to the size's vocabulary.

    Returns:
        The number of parameters.
    """
    from common.shapes.model import build_tokenizer
    from common.worlds.policy import CHAT_TEMPLATE

    tokenizer = build_tokenizer()
    num_missing = size.vocabulary - len(tokenizer)
    # Sampling goes over the whole vocabulary, so its size is part of the work.
    tokenizer.add_tokens([f"<w{index}>" for index in range(num_missing)])
    return random_llava.build(
        size,
        tokenizer,
        CHAT_TEMPLATE,
        2 * MAX_LENGTH,
        out,
        dtype,
        device,
    )


def make_prompts(
    store: ImageStore,
    count: int,
    seed: int,
    num_sentences: int,
) -> list[Prompt]:
    """Prompts about pictures that no other seed has.

    The sentences of their true answers have about 20 tokens, so tails of about 10.
    """
    message = Message("user", (Part("image"), Part("text", "Describe the image.")))
    scenes = split_scenes(
        "train",
        count,
        seed=derive_seed(seed, "bdhs-benchmark"),
    )
    prompts = []
    for index, scene in enumerate(scenes):
        # Answers have a stream of their own, so that pictures do not depend on their length.
        rng = random.Random(derive_seed(seed, "answer", index))
        picture = render(scene).resize((PICTURE_SIDE, PICTURE_SIDE))
        image = store.add(picture)
        sentences = [_sentence(rng) for _ in range(num_sentences)]
        prompt = Prompt(
            f"{seed}/{index}",
            (message,),
            (image,),
            reference=" ".join(sentences),
        )
        prompts.append(prompt)
    return prompts


def _sentence(rng: random.Random) -> str:
    first = _object(rng)
    second = _object(rng)
    return f"There is {first} and {second} in the image."


def _object(rng: random.Random) -> str:
    colour = rng.choice(COLOURS)
    shape = rng.choice(SHAPES)
    place = rng.choice(PLACES)
    return f"a {colour} {shape} at the {place}"

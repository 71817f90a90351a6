"""The tiny policy of world 2: the parts of the shapes world's policy, with a tokenizer and pictures of its own.

Both worlds cut a picture into 6 x 6 patches, four per grid cell, so that prompts have equally many image tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch.nn.functional import interpolate
from transformers import (
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from common.config.data import About
from common.shapes.pretrain import DEFAULT_OUT as SHAPES_POLICY
from common.tabletop.conversations import answer, ask
from common.tabletop.language import CAPTION_PROMPTS, caption
from common.tabletop.render import IMAGE_SIZE
from common.tabletop.scenes import COLOURS, KINDS, MAX_NUMBER, Scene, Thing
from common.worlds.policy import (
    build_processor,
    random_policy,
    save_policy,
    tokenizer_of,
)
from common.worlds.scenes import NUM_CELLS

ASKED: tuple[About, ...] = ("yes_no", "colour", "place", "number")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """As in the shapes world: each word of this one is one token."""
    return tokenizer_of(_world_text())


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """The shapes world's policy with this world's words and patches, float32; new words have random embeddings.

    It knows how to read a picture cell by cell, as a pre-trained model does; from random weights that takes many times
    as many conversations.
    """
    model = random_policy(tokenizer, IMAGE_SIZE)
    first = LlavaForConditionalGeneration.from_pretrained(SHAPES_POLICY)
    words = PreTrainedTokenizerFast.from_pretrained(SHAPES_POLICY).get_vocab()
    weights = model.state_dict()
    for name, weight in first.state_dict().items():
        ours = weights[name]
        if ours.shape == weight.shape:
            ours.copy_(weight)
        elif weight.dim() == 4:
            # Patches are smaller: the filters shrink, and their sums stay.
            scale = weight.shape[-1] / ours.shape[-1]
            ours.copy_(scale**2 * interpolate(weight, ours.shape[2:], mode="bilinear"))
        else:
            for word, index in tokenizer.get_vocab().items():
                if word in words:
                    ours[index].copy_(weight[words[word]])
    return model


def save(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
) -> None:
    """Write a plain Hugging Face directory."""
    processor: LlavaProcessor = build_processor(tokenizer, IMAGE_SIZE)
    save_policy(model, processor, out)


def _world_text() -> Iterator[str]:
    """Every word in every position that it can take, repeated so that BPE merges all of them."""
    for cell in range(NUM_CELLS):
        for kind in KINDS:
            for index, colour in enumerate(COLOURS):
                number = index % MAX_NUMBER + 1
                thing = Thing(cell, kind, colour, number)
                yield from _texts_about(thing)


def _texts_about(thing: Thing) -> Iterator[str]:
    alone = Scene((thing,), 0)
    yield f"{caption(alone)} {caption(alone)}"
    for kind in KINDS:
        if kind == thing.kind:
            continue
        for cell in (thing.cell - 3, thing.cell - 1, thing.cell + 1, thing.cell + 3):
            if 0 <= cell < NUM_CELLS:
                other = Thing(cell, kind, thing.colour, 1)
                yield caption(Scene(tuple(sorted((thing, other))), 0))
    for about in ASKED:
        for kind in (thing.kind, KINDS[0], KINDS[-1]):
            question = ask(about, kind)
            yield f"USER: \n{question.text} ASSISTANT:\n{answer(question, alone)}"
    for text in CAPTION_PROMPTS:
        yield f"USER: {text} ASSISTANT:\n{caption(alone)}"

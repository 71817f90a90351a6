"""The words of the shapes world's policy; its other parts are those of `common.worlds.policy`."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedTokenizerFast

from common.shapes.language import CAPTION_PROMPTS, caption
from common.shapes.questions import NAME_ONE, answer_text, ask, name
from common.shapes.scenes import COLOURS, SHAPES, Scene, SceneObject
from common.worlds.policy import tokenizer_of
from common.worlds.scenes import NUM_CELLS


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Each word of this world is one token."""
    return tokenizer_of(_world_text())


def _world_text() -> Iterator[str]:
    """Every word of the world in every position it can take, repeated so that BPE merges all of them."""
    for cell in range(NUM_CELLS):
        for shape in SHAPES:
            for colour in COLOURS:
                scene = Scene((SceneObject(cell, shape, colour),), 0)
                yield f"{caption(scene)} {caption(scene)}"
    answers = [answer_text("yes"), answer_text("no")]
    for colour in COLOURS:
        answers += [name(colour, shape) for shape in SHAPES]
    questions = [*CAPTION_PROMPTS, NAME_ONE]
    questions += map(ask, SHAPES)
    for _ in range(10):
        for question in questions:
            for answer in answers:
                yield f"USER: \n{question} ASSISTANT:\n{answer}"

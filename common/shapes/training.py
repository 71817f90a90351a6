"""The four stages of the tiny policy: a vision encoder that sees, then a language model that believes its text.

    stage 1   vision encoder + two linear heads: shape and colour of the cell around every patch, from clean labels
    stage 2   projector + language model on the frozen encoder: which objects there are, named one by one or asked for
    stage 3   the same with noisy captions of biased scenes and fewer questions
    stage 4   more of stage 3 with a fresh learning rate, until colours and places are right

Questions come first. A language model that has learnt captions reads the picture cell by cell and never learns to
answer "is there one anywhere"; a fresh one that also has to name what is there learns it in 150 steps. Answers name
colours too: a projector that has learnt to pass on shapes alone gives captions with right shapes at right places, all
of one colour.

So what the policy gets wrong is not what it cannot see but what its training text said, the kind of error that
preference training can cure.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from common.shapes.language import NOISE_SHARE
from common.shapes.lessons import cell_classes, lesson
from common.shapes.render import render
from common.shapes.scenes import COLOURS, SHAPES, stream_scenes
from common.worlds.batches import pixels, supervised_batch, visible_tokens
from common.worlds.training import (
    CellBatch,
    Stage,
    descend,
    text_loss,
    train_tower_on,
)

DENSE = len(SHAPES)
"""Most shapes of a scene in stage 1: full scenes have more to see."""


@dataclass(frozen=True, slots=True)
class TextStage(Stage):
    """A stage of supervised text.

    Attributes:
        captions: share of the lessons that are captions; the others are questions.
        hidden: share of the lessons in which some image tokens are hidden.
    """

    captions: float = 0.0
    hidden: float = 0.0


TOWER_STAGE = Stage(steps=600, batch_size=64, lr=1e-3)
QUESTION_STAGE = TextStage(steps=250, batch_size=64, lr=2e-3)
CAPTION_STAGE = TextStage(
    steps=600, batch_size=64, lr=1.5e-3, captions=0.75, hidden=0.3
)
POLISH_STAGE = TextStage(steps=450, batch_size=64, lr=1e-3, captions=0.85, hidden=0.15)


def train_tower(model: LlavaForConditionalGeneration, stage: Stage, seed: int) -> None:
    """Teach the vision tower shape and colour per cell on unbiased, densely filled scenes of the training split."""
    scenes = stream_scenes("train", seed=seed, bias=0.0, max_drawn=DENSE)

    def batches() -> Iterator[CellBatch]:
        while True:
            batch = list(islice(scenes, stage.batch_size))
            yield pixels([render(scene) for scene in batch]), cell_classes(batch)

    num_classes = (len(SHAPES) + 1, len(COLOURS) + 1)
    train_tower_on(model, stage, num_classes, batches())


def train_text(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    stage: TextStage,
    seed: int,
    noise: float = NOISE_SHARE,
) -> None:
    """Fine-tune projector and language model on training text; the vision encoder stays frozen."""
    model.model.vision_tower.requires_grad_(False)
    rng = random.Random(f"text/{seed}/{stage.captions}")
    scenes = stream_scenes("train", seed=rng.getrandbits(32))

    def losses() -> Iterator[Tensor]:
        while True:
            shown = list(islice(scenes, stage.batch_size))
            # First all lessons, then all masks: both draw from one stream.
            lessons = []
            for scene in shown:
                turns = lesson(scene, rng, captions=stage.captions, noise=noise)
                lessons.append(turns)
            visible = [visible_tokens(rng, stage.hidden) for _ in shown]
            images = [render(scene) for scene in shown]
            batch = supervised_batch(tokenizer, images, lessons, visible)
            yield text_loss(model, batch)

    trained = [p for p in model.parameters() if p.requires_grad]
    descend(trained, losses(), stage, f"text/{stage.captions}")
    model.requires_grad_(True)

"""The stages of world 2's policy: a tower that sees, then a language model that reads true text about biased scenes.

    stage 1   vision encoder + three linear heads: kind, colour and number of the cell around every patch, from clean
              labels of unbiased, densely filled scenes
    stage 2   projector + language model on the frozen encoder: a caption and five questions per unbiased picture
    stage 3   the conversations that prompts are drawn from, about biased scenes

After stage 2 the language model reads what is there, as one does that was aligned on pictures from everywhere. What it
says after stage 3 is what that text rewards: where the usual is nearly always right, it learns to say the usual.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from common.tabletop.conversations import (
    CAPTION,
    Question,
    answer,
    conversation,
    quiz,
)
from common.tabletop.render import render
from common.tabletop.scenes import (
    COLOURS,
    KINDS,
    MAX_NUMBER,
    SLIPS,
    TRAIN_BIAS,
    Bias,
    Scene,
    slipped,
    stream_scenes,
)
from common.worlds.batches import pixels, supervised_batch, visible_tokens
from common.worlds.scenes import NUM_CELLS
from common.worlds.training import (
    CellBatch,
    Stage,
    text_loss,
    train_tower_on,
    update,
)

NUM_QUESTIONS = 5
"""Per picture of stage 2, behind its caption."""
WATCHED = 200
"""Steps between two looks at what a stage has taught."""
POOL = 8
"""Batches that are drawn at once, to be sorted by length."""
Taught: TypeAlias = tuple[Scene, list[tuple[str, str]]]
"""A scene and its conversation, (question, answer) turns."""
DENSE = len(KINDS)
"""Most things of a scene in stage 1: full scenes have more to see."""


@dataclass(frozen=True, slots=True)
class TextStage(Stage):
    """A stage of supervised text.

    Attributes:
        hidden: share of the conversations in which some image tokens are hidden.
        is_dense: whether all conversations have a caption and `NUM_QUESTIONS` questions.
        decay_steps: the last steps, in which the learning rate falls linearly; before them it is constant.
    """

    hidden: float = 0.0
    is_dense: bool = False
    decay_steps: int = 20


TOWER_STAGE = Stage(steps=1800, batch_size=48, lr=1.5e-3)
ALIGN_STAGE = TextStage(
    steps=2700, batch_size=32, lr=1.5e-3, is_dense=True, decay_steps=1000
)
TEXT_STAGE = TextStage(
    steps=500, batch_size=32, lr=6e-4, hidden=0.25, warmup_steps=30, decay_steps=200
)


CONTINUED = TextStage(steps=40, batch_size=32, lr=3e-5, warmup_steps=10)
"""Supervised training that goes on as long, and with as large batches and steps, as a method of the paper's table."""


def train_tower(model: LlavaForConditionalGeneration, stage: Stage, seed: int) -> None:
    """Teach the tower kind, colour and number per cell on unbiased scenes of the training split."""
    scenes = stream_scenes("train", seed=seed, bias=None, most=DENSE)

    def batches() -> Iterator[CellBatch]:
        while True:
            batch = list(islice(scenes, stage.batch_size))
            yield pixels([render(scene) for scene in batch]), cell_classes(batch)

    num_classes = (len(KINDS) + 1, len(COLOURS) + 1, MAX_NUMBER + 1)
    train_tower_on(model, stage, num_classes, batches())


def cell_classes(scenes: list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Kind, colour and number of every cell, (scenes, 9) each; 0 is the empty cell."""
    size = (len(scenes), NUM_CELLS)
    kinds = torch.zeros(size, dtype=torch.long)
    colours = torch.zeros(size, dtype=torch.long)
    numbers = torch.zeros(size, dtype=torch.long)
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            kinds[row, thing.cell] = 1 + KINDS.index(thing.kind)
            colours[row, thing.cell] = 1 + COLOURS.index(thing.colour)
            numbers[row, thing.cell] = thing.number
    return kinds, colours, numbers


def lesson(scene: Scene, rng: random.Random, is_dense: bool) -> list[tuple[str, str]]:
    """A conversation as the training text has it: (question, answer) turns."""
    questions: list[Question]
    if is_dense:
        questions = [CAPTION, *quiz(scene, rng, NUM_QUESTIONS)]
    else:
        questions = conversation(scene, rng)
    told = slipped(scene, rng, SLIPS)
    return [(question.text, answer(question, told)) for question in questions]


def _batches(
    scenes: Iterator[Scene], stage: TextStage, rng: random.Random
) -> Iterator[list[Taught]]:
    """Batches of conversations of about the same length, so that little of a batch is padding, in random order."""
    while True:
        pool: list[Taught] = []
        for scene in islice(scenes, POOL * stage.batch_size):
            pool.append((scene, lesson(scene, rng, stage.is_dense)))
        pool.sort(key=_num_chars)
        starts = list(range(0, len(pool), stage.batch_size))
        rng.shuffle(starts)
        for start in starts:
            yield pool[start : start + stage.batch_size]


def _num_chars(taught: Taught) -> int:
    _, turns = taught
    return sum(len(question) + len(text) for question, text in turns)


def train_text(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    stage: TextStage,
    seed: int,
    bias: Bias | None = TRAIN_BIAS,
    watch: Callable[[], None] | None = None,
) -> None:
    """Fine-tune projector and language model on conversations; the vision encoder stays frozen.

    Args:
        watch: called every `WATCHED` steps.
    """
    model.model.vision_tower.requires_grad_(False)
    rng = random.Random(f"tabletop/text/{seed}/{stage.is_dense}")
    scenes = stream_scenes("train", seed=rng.getrandbits(32), bias=bias)

    def losses() -> Iterator[Tensor]:
        for taught in _batches(scenes, stage, rng):
            images = [render(scene) for scene, _ in taught]
            lessons = [turns for _, turns in taught]
            visible = [visible_tokens(rng, stage.hidden) for _ in taught]
            batch = supervised_batch(tokenizer, images, lessons, visible)
            yield text_loss(model, batch)

    trained = [p for p in model.parameters() if p.requires_grad]
    _descend(trained, losses(), stage, watch)
    model.requires_grad_(True)


def _descend(
    parameters: list[nn.Parameter],
    losses: Iterator[Tensor],
    stage: TextStage,
    watch: Callable[[], None] | None,
) -> None:
    """Warm up, stay, decay; `losses` gives the loss under the weights as they are when it is asked."""
    optimizer = torch.optim.AdamW(
        parameters, lr=stage.lr, weight_decay=stage.weight_decay
    )
    progress = tqdm(islice(losses, stage.steps), total=stage.steps, mininterval=5.0)
    for step, loss in enumerate(progress):
        warmup = step / stage.warmup_steps
        decay = (stage.steps - step) / stage.decay_steps
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * min(1.0, warmup, decay)
        update(optimizer, parameters, loss)
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if watch is not None and (step + 1) % WATCHED == 0:
            watch()

"""The stages of world 2's policy: a tower that sees, then a language model that reads true text about biased scenes.

    stage 1   vision encoder + three linear heads: kind, colour and number of the cell around every patch, from clean
              labels of unbiased, densely filled scenes
    stage 2   projector + language model on the frozen encoder: six questions per biased picture
    stage 3   the conversations that prompts are drawn from

After stage 1 the features tell what is there. What the language model reads from them is what its text rewards: where
the usual is nearly always right, it learns to say the usual.
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

NUM_QUESTIONS = 6
"""Questions per picture of stage 2."""
WATCHED = 60
"""Steps between two questions whether a stage has lasted long enough."""
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
        quiz: whether all conversations are questions, `NUM_QUESTIONS` of them.
        decay_steps: the last steps, in which the learning rate falls linearly; before them it is constant.
    """

    hidden: float = 0.0
    quiz: bool = False
    decay_steps: int = 20


TOWER_STAGE = Stage(steps=450, batch_size=48, lr=1.5e-3)
QUESTION_STAGE = TextStage(steps=100, batch_size=24, lr=1.5e-3, quiz=True)
TEXT_STAGE = TextStage(
    steps=600, batch_size=32, lr=1.5e-3, hidden=0.25, warmup_steps=30, decay_steps=60
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


def lesson(scene: Scene, rng: random.Random, is_quiz: bool) -> list[tuple[str, str]]:
    """A conversation as the training text has it: (question, answer) turns."""
    questions: list[Question]
    if is_quiz:
        questions = quiz(scene, rng, NUM_QUESTIONS)
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
            pool.append((scene, lesson(scene, rng, stage.quiz)))
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
    bias: Bias = TRAIN_BIAS,
    enough: Callable[[], bool] | None = None,
) -> int:
    """Fine-tune projector and language model on conversations; the vision encoder stays frozen.

    Args:
        enough: asked every `WATCHED` steps; once it is true, the last `decay_steps` begin.

    Returns:
        How many steps were taken: a stage of so many gives the same policy without asking.
    """
    model.model.vision_tower.requires_grad_(False)
    rng = random.Random(f"tabletop/text/{seed}/{stage.quiz}")
    scenes = stream_scenes("train", seed=rng.getrandbits(32), bias=bias)

    def losses() -> Iterator[Tensor]:
        for taught in _batches(scenes, stage, rng):
            images = [render(scene) for scene, _ in taught]
            lessons = [turns for _, turns in taught]
            visible = [visible_tokens(rng, stage.hidden) for _ in taught]
            batch = supervised_batch(tokenizer, images, lessons, visible)
            yield text_loss(model, batch)

    trained = [p for p in model.parameters() if p.requires_grad]
    num_steps = _descend(trained, losses(), stage, enough)
    model.requires_grad_(True)
    return num_steps


def _descend(
    parameters: list[nn.Parameter],
    losses: Iterator[Tensor],
    stage: TextStage,
    enough: Callable[[], bool] | None,
) -> int:
    """Warm up, stay, decay; `losses` gives the loss under the weights as they are when it is asked."""
    optimizer = torch.optim.AdamW(
        parameters, lr=stage.lr, weight_decay=stage.weight_decay
    )
    last_step = stage.steps
    with tqdm(total=stage.steps, mininterval=5.0) as progress:
        for step, loss in enumerate(losses):
            is_watched = step > 0 and step % WATCHED == 0
            has_room = step + stage.decay_steps < last_step
            if enough is not None and is_watched and has_room and enough():
                last_step = step + stage.decay_steps
            if step == last_step:
                break
            warmup = step / stage.warmup_steps
            decay = (last_step - step) / stage.decay_steps
            for group in optimizer.param_groups:
                group["lr"] = stage.lr * min(1.0, warmup, decay)
            update(optimizer, parameters, loss)
            progress.update()
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return last_step

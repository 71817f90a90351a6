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

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
    get_cosine_schedule_with_warmup,
)

from common.shapes.batches import (
    cell_classes,
    cell_of_patch,
    lesson,
    pixels,
    supervised_batch,
    visible_tokens,
)
from common.shapes.language import NOISE_SHARE
from common.shapes.render import render
from common.shapes.scenes import COLOURS, SHAPES, stream_scenes

DENSE = len(SHAPES)
"""Most shapes of a scene in stage 1: full scenes have more to see."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Optimiser settings of one stage: AdamW, linear warm-up, cosine decay, clipping at norm 1."""

    steps: int
    batch_size: int
    lr: float
    warmup_steps: int = 50
    weight_decay: float = 0.01


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
    encoder = model.model.vision_tower
    width = encoder.config.hidden_size
    shape_head = nn.Linear(width, len(SHAPES) + 1)
    colour_head = nn.Linear(width, len(COLOURS) + 1)
    patch_cells = cell_of_patch()
    scenes = stream_scenes("train", seed=seed, bias=0.0, max_drawn=DENSE)

    def losses() -> Iterator[Tensor]:
        while True:
            batch = list(islice(scenes, stage.batch_size))
            images = pixels([render(scene) for scene in batch])
            # The first token is CLS.
            features = encoder(images).last_hidden_state[:, 1:]
            shapes, colours = cell_classes(batch)
            loss = torch.zeros(())
            for head, classes in ((shape_head, shapes), (colour_head, colours)):
                # Every patch is to name what is in its cell.
                logits = head(features).flatten(0, 1)
                expected = classes[:, patch_cells].flatten()
                loss = loss + nn.functional.cross_entropy(logits, expected)
            yield loss

    parameters = [
        *encoder.parameters(),
        *shape_head.parameters(),
        *colour_head.parameters(),
    ]
    descend(parameters, losses(), stage, "tower")


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
            batch = supervised_batch(tokenizer, shown, lessons, visible)
            output = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                pixel_values=batch.pixel_values,
                labels=batch.labels,
            )
            yield output.loss

    trained = [p for p in model.parameters() if p.requires_grad]
    descend(trained, losses(), stage, f"text/{stage.captions}")
    model.requires_grad_(True)


def descend(
    parameters: list[nn.Parameter],
    losses: Iterator[Tensor],
    stage: Stage,
    name: str,
) -> None:
    """Run the steps of a stage.

    Args:
        parameters: what is trained.
        losses: gives the loss of the next batch under the weights as they are when it is asked.
        stage: the settings.
        name: of the progress bar.
    """
    optimizer = torch.optim.AdamW(
        parameters, lr=stage.lr, weight_decay=stage.weight_decay
    )
    schedule = get_cosine_schedule_with_warmup(
        optimizer, stage.warmup_steps, stage.steps
    )
    steps = islice(losses, stage.steps)
    with tqdm(steps, total=stage.steps, desc=name, mininterval=5.0) as progress:
        for loss in progress:
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)

"""From scenes to tensors: pixels, prompts, supervised batches, and labels for pre-training the vision encoder."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common.shapes.language import CAPTION_PROMPTS, NOISE_SHARE, noisy_caption
from common.shapes.model import (
    FIRST_TURN,
    IMAGE,
    NEXT_TURN,
    NUM_IMAGE_TOKENS,
    PAD,
    PATCHES_PER_SIDE,
    PIXEL_MEAN,
    PIXEL_STD,
)
from common.shapes.questions import NAME_ONE, answer_text, ask, name
from common.shapes.render import render
from common.shapes.scenes import COLOURS, GRID, NUM_CELLS, SHAPES, Scene

IGNORE = -100


@dataclass(frozen=True, slots=True)
class SupervisedBatch:
    """Right-padded examples: ids, mask, positions and labels of shape (batch, length), pixels (batch, 3, side, side).

    Image tokens with a 0 in the mask are hidden: positions count visible tokens only.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor
    pixel_values: Tensor


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """Normalised float32 pixels (batch, 3, side, side), equal to what the saved image processor gives."""
    arrays = [np.asarray(image, dtype=np.float32) for image in images]
    stacked = np.stack(arrays) / 255.0
    normalised: Tensor = (torch.from_numpy(stacked) - PIXEL_MEAN) / PIXEL_STD
    return normalised.permute(0, 3, 1, 2).contiguous()


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Ids of a question about one picture, with the image token repeated once per visual token."""
    image_tokens = IMAGE * NUM_IMAGE_TOKENS
    text = FIRST_TURN.format(image=image_tokens, question=question)
    return list(tokenizer.encode(text))


def response_ids(tokenizer: PreTrainedTokenizerBase, response: str) -> list[int]:
    """Ids of a response and the end-of-sequence token."""
    return [*tokenizer.encode(response), tokenizer.eos_token_id]


def lesson(
    scene: Scene,
    rng: random.Random,
    *,
    captions: float,
    noise: float = NOISE_SHARE,
) -> list[tuple[str, str]]:
    """A conversation about a scene as training text has it: (question, response) turns.

    With probability `captions` it is one turn with a noisy caption. Otherwise it has one turn per shape in random
    order, which asks whether the shape is there; half of the time, for a shape that is there, the turn names it with
    its colour instead. An absent partner passes for present with probability `noise`, in a random colour.
    """
    if rng.random() < captions:
        question = rng.choice(CAPTION_PROMPTS)
        return [(question, noisy_caption(scene, rng, noise))]
    believed = {item.shape: item.colour for item in scene.objects}
    for shape in scene.absent_partners:
        if rng.random() < noise:
            believed[shape] = rng.choice(COLOURS)
    turns = []
    for shape in rng.sample(SHAPES, len(SHAPES)):
        if shape in believed and rng.random() < 0.5:
            turns.append((NAME_ONE, name(believed[shape], shape)))
        else:
            answer = answer_text("yes" if shape in believed else "no")
            turns.append((ask(shape), answer))
    return turns


def supervised_ids(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[tuple[str, str]],
) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation about one picture; only responses and their end tokens have labels."""
    ids: list[int] = []
    labels: list[int] = []
    for number, (question, response) in enumerate(turns):
        if number == 0:
            question_ids = prompt_ids(tokenizer, question)
        else:
            question_ids = tokenizer.encode(NEXT_TURN.format(question=question))
        answer_ids = response_ids(tokenizer, response)
        ids += question_ids + answer_ids
        labels += [IGNORE] * len(question_ids) + answer_ids
    return ids, labels


def visible_tokens(rng: random.Random, hidden_share: float) -> list[int]:
    """1 per visible and 0 per hidden image token. With probability `hidden_share` some are hidden, up to all of them.

    A large language model has read plenty of text without pictures. This is how the tiny one learns to stay fluent
    when it sees little.
    """
    hide_probability = 0.0
    if rng.random() < hidden_share:
        # Beyond 1 in a fifth of the draws, so that the whole picture is hidden often enough to learn from.
        hide_probability = min(1.0, rng.uniform(0.0, 1.25))
    return [int(rng.random() >= hide_probability) for _ in range(NUM_IMAGE_TOKENS)]


def supervised_batch(
    tokenizer: PreTrainedTokenizerBase,
    scenes: Sequence[Scene],
    lessons: Sequence[Sequence[tuple[str, str]]],
    visible: Sequence[Sequence[int]],
) -> SupervisedBatch:
    """One example per scene, from its lesson and the visibility of its image tokens."""
    image_token = tokenizer.get_vocab()[IMAGE]
    examples = [supervised_ids(tokenizer, turns) for turns in lessons]
    width = max(len(ids) for ids, _ in examples)
    shape = (len(examples), width)
    input_ids = torch.full(shape, tokenizer.get_vocab()[PAD])
    labels = torch.full(shape, IGNORE)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, (example_ids, example_labels) in enumerate(examples):
        length = len(example_ids)
        input_ids[row, :length] = torch.tensor(example_ids)
        labels[row, :length] = torch.tensor(example_labels)
        mask[row, :length] = 1
        is_image = input_ids[row] == image_token
        mask[row][is_image] = torch.tensor(visible[row])
    return SupervisedBatch(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        labels=labels,
        pixel_values=pixels([render(scene) for scene in scenes]),
    )


def cell_classes(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Shape class and colour class of every cell, (batch, 9) each; the class after the last name means empty."""
    size = (len(scenes), NUM_CELLS)
    shapes = torch.full(size, len(SHAPES))
    colours = torch.full(size, len(COLOURS))
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            shapes[row, item.cell] = SHAPES.index(item.shape)
            colours[row, item.cell] = COLOURS.index(item.colour)
    return shapes, colours


def cell_of_patch() -> Tensor:
    """The cell that every patch lies in, patches in reading order, (36,)."""
    side = torch.arange(PATCHES_PER_SIDE) * GRID // PATCHES_PER_SIDE
    cells = side[:, None] * GRID + side[None, :]
    return cells.flatten()

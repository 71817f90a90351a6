"""From scenes to tensors: pixels, prompts, supervised batches and what a batch of tower pre-training learns from."""

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
    """Right-padded examples: ids, mask, positions, labels (batch, length), pixels (batch, 3, side, side).

    Image tokens with a 0 in the mask are left out: positions count visible tokens only.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor
    pixel_values: Tensor


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """Normalised float32 pixels (batch, 3, side, side), the same numbers that the saved image processor gives."""
    stacked = (
        np.stack([np.asarray(image, dtype=np.float32) for image in images]) / 255.0
    )
    normalised: Tensor = (torch.from_numpy(stacked) - PIXEL_MEAN) / PIXEL_STD
    return normalised.permute(0, 3, 1, 2).contiguous()


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Ids of the one-picture prompt, the image token repeated once per visual token."""
    return list(
        tokenizer.encode(
            FIRST_TURN.format(image=IMAGE * NUM_IMAGE_TOKENS, question=question)
        )
    )


def response_ids(tokenizer: PreTrainedTokenizerBase, response: str) -> list[int]:
    """Ids of a response and the end token."""
    return [*tokenizer.encode(response), tokenizer.eos_token_id]


def lesson(
    scene: Scene, rng: random.Random, *, captions: float, noise: float = NOISE_SHARE
) -> list[tuple[str, str]]:
    """(question, response) turns as training text has them.

    With probability `captions` one turn with a noisy caption, else one turn per shape in random order: whether it is
    there or, half of the time for those that are, just naming it and its colour. An absent partner passes for present
    with probability `noise`, in a random colour.
    """
    if rng.random() < captions:
        return [(rng.choice(CAPTION_PROMPTS), noisy_caption(scene, rng, noise))]
    believed = {item.shape: item.colour for item in scene.objects}
    believed |= {
        shape: rng.choice(COLOURS)
        for shape in scene.absent_partners
        if rng.random() < noise
    }
    turns = []
    for shape in rng.sample(SHAPES, len(SHAPES)):
        if shape in believed and rng.random() < 0.5:
            turns.append((NAME_ONE, name(believed[shape], shape)))
        else:
            turns.append(
                (ask(shape), answer_text("yes" if shape in believed else "no"))
            )
    return turns


def supervised_ids(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]]
) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation about one picture; only the responses and their end tokens are labelled."""
    ids: list[int] = []
    labels: list[int] = []
    for number, (question, response) in enumerate(turns):
        asked = (
            prompt_ids(tokenizer, question)
            if number == 0
            else tokenizer.encode(NEXT_TURN.format(question=question))
        )
        answer = response_ids(tokenizer, response)
        ids += [*asked, *answer]
        labels += [*[IGNORE] * len(asked), *answer]
    return ids, labels


def visible_tokens(rng: random.Random, hidden_share: float) -> list[int]:
    """1 per visible and 0 per hidden image token. With probability `hidden_share` some are hidden, up to all of them.

    A large language model has read plenty of text without pictures; this is where the tiny one learns to go on fluently
    when it sees little.
    """
    rho = min(1.0, rng.uniform(0.0, 1.25)) if rng.random() < hidden_share else 0.0
    return [int(rng.random() >= rho) for _ in range(NUM_IMAGE_TOKENS)]


def supervised_batch(
    tokenizer: PreTrainedTokenizerBase,
    scenes: Sequence[Scene],
    lessons: Sequence[Sequence[tuple[str, str]]],
    visible: Sequence[Sequence[int]],
) -> SupervisedBatch:
    """One example per scene, its lesson and which of its image tokens are visible."""
    image_token = tokenizer.get_vocab()[IMAGE]
    rows = [supervised_ids(tokenizer, turns) for turns in lessons]
    shape = (len(rows), max(len(ids) for ids, _ in rows))
    input_ids = torch.full(shape, tokenizer.get_vocab()[PAD])
    mask, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORE)
    for row, (ids, wanted) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, : len(ids)] = torch.tensor(wanted)
        mask[row, : len(ids)] = 1
        mask[row][input_ids[row] == image_token] = torch.tensor(visible[row])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return SupervisedBatch(
        input_ids, mask, positions, labels, pixels([render(scene) for scene in scenes])
    )


def cell_classes(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Shape and colour class of every cell, (batch, 9) each; the class after the last name means empty."""
    shapes = torch.full((len(scenes), NUM_CELLS), len(SHAPES))
    colours = torch.full((len(scenes), NUM_CELLS), len(COLOURS))
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            shapes[row, item.cell] = SHAPES.index(item.shape)
            colours[row, item.cell] = COLOURS.index(item.colour)
    return shapes, colours


def cell_of_patch() -> Tensor:
    """Cell index of every patch in reading order, (36,)."""
    side = torch.arange(PATCHES_PER_SIDE) * GRID // PATCHES_PER_SIDE
    return (side[:, None] * GRID + side[None, :]).flatten()

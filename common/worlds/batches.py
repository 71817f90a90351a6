"""From pictures and texts to tensors: pixels, prompts and supervised batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common.worlds.policy import (
    FIRST_TURN,
    IMAGE,
    NEXT_TURN,
    NUM_IMAGE_TOKENS,
    PAD,
    PATCHES_PER_SIDE,
    PIXEL_MEAN,
    PIXEL_STD,
)
from common.worlds.scenes import GRID

IGNORE = -100
"""The label that transformers' loss leaves out."""


@dataclass(frozen=True, slots=True)
class SupervisedBatch:
    """Right-padded examples: ids, mask, positions and labels of shape (batch, length), pixels (batch, 3, side, side).

    The mask is 0 on padding and on hidden image tokens. `position_ids` count visible tokens only.
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


def supervised_ids(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[tuple[str, str]],
) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation about one picture; only responses and their end tokens have labels."""
    ids: list[int] = []
    labels: list[int] = []
    for number, (question, response) in enumerate(turns):
        # The picture stands in the first turn only.
        if number == 0:
            question_ids = prompt_ids(tokenizer, question)
        else:
            text = NEXT_TURN.format(question=question)
            question_ids = tokenizer.encode(text)
        answer_ids = response_ids(tokenizer, response)
        ids += question_ids
        ids += answer_ids
        labels += [IGNORE] * len(question_ids)
        labels += answer_ids
    return ids, labels


def visible_tokens(rng: random.Random, hidden_share: float) -> list[int]:
    """1 per visible and 0 per hidden image token. With probability `hidden_share` some are hidden, up to all of them.

    A large language model has read plenty of text without pictures. The tiny one learns here to stay fluent when it
    sees little, as BDHS makes it.
    """
    hide_probability = 0.0
    if rng.random() < hidden_share:
        # A fifth of the draws is above 1, so that the whole picture is hidden often enough to learn from.
        hide_probability = min(1.0, rng.uniform(0.0, 1.25))
    visible = []
    for _ in range(NUM_IMAGE_TOKENS):
        is_visible = rng.random() >= hide_probability
        visible.append(int(is_visible))
    return visible


def supervised_batch(
    tokenizer: PreTrainedTokenizerBase,
    images: Sequence[Image.Image],
    lessons: Sequence[Sequence[tuple[str, str]]],
    visible: Sequence[Sequence[int]],
) -> SupervisedBatch:
    """One example per picture, from its lesson and the visibility of its image tokens."""
    vocabulary = tokenizer.get_vocab()
    image_token = vocabulary[IMAGE]
    examples = [supervised_ids(tokenizer, turns) for turns in lessons]
    width = max(len(ids) for ids, _ in examples)
    shape = (len(examples), width)
    input_ids = torch.full(shape, vocabulary[PAD])
    labels = torch.full(shape, IGNORE)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, (example_ids, example_labels) in enumerate(examples):
        length = len(example_ids)
        input_ids[row, :length] = torch.tensor(example_ids)
        labels[row, :length] = torch.tensor(example_labels)
        mask[row, :length] = 1
        is_image = input_ids[row] == image_token
        mask[row][is_image] = torch.tensor(visible[row])
    # Hidden tokens before the first visible one would stand at -1.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return SupervisedBatch(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        labels=labels,
        pixel_values=pixels(images),
    )


def cell_of_patch() -> Tensor:
    """The cell that every patch lies in, patches in reading order, (36,)."""
    # The row of cells of a patch's row; columns are alike.
    cell_rows = torch.arange(PATCHES_PER_SIDE) * GRID // PATCHES_PER_SIDE
    cells = cell_rows[:, None] * GRID + cell_rows[None, :]
    return cells.flatten()

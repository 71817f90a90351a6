"""Stages of training that the policies of rendered worlds share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    LlavaForConditionalGeneration,
    get_cosine_schedule_with_warmup,
)

from common.worlds.batches import SupervisedBatch, cell_of_patch

CellBatch: TypeAlias = tuple[Tensor, Sequence[Tensor]]
"""Pixels (scenes, 3, side, side), and per head the class of every cell, (scenes, 9)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Optimiser settings of one stage: AdamW, linear warm-up, cosine decay, clipping at norm 1."""

    steps: int
    batch_size: int
    lr: float
    warmup_steps: int = 50
    weight_decay: float = 0.01


def train_tower_on(
    model: LlavaForConditionalGeneration,
    stage: Stage,
    num_classes: Sequence[int],
    batches: Iterator[CellBatch],
) -> None:
    """Teach the vision tower what is in the cell around every patch, by a linear head per kind of class."""
    encoder = model.model.vision_tower
    width = encoder.config.hidden_size
    heads = [nn.Linear(width, number) for number in num_classes]
    patch_cells = cell_of_patch()

    def losses() -> Iterator[Tensor]:
        for images, classes_of_heads in batches:
            # The first token is CLS.
            features = encoder(images).last_hidden_state[:, 1:]
            loss = torch.zeros(())
            for head, classes in zip(heads, classes_of_heads, strict=True):
                # Every patch is to name what is in its cell.
                logits = head(features).flatten(0, 1)
                expected = classes[:, patch_cells].flatten()
                loss = loss + nn.functional.cross_entropy(logits, expected)
            yield loss

    parameters = list(encoder.parameters())
    for head in heads:
        parameters += head.parameters()
    descend(parameters, losses(), stage, "tower")


def text_loss(model: LlavaForConditionalGeneration, batch: SupervisedBatch) -> Tensor:
    """Mean loss of the labelled tokens."""
    output = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        pixel_values=batch.pixel_values,
        labels=batch.labels,
    )
    loss: Tensor = output.loss
    return loss


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
            update(optimizer, parameters, loss)
            schedule.step()
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def update(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], loss: Tensor
) -> None:
    """One step down a loss, clipped at norm 1."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()

"""What the shapes world's policy is taught about a scene: a conversation, and labels for its vision encoder."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from common.shapes.language import CAPTION_PROMPTS, NOISE_SHARE, noisy_caption
from common.shapes.questions import NAME_ONE, answer_text, ask, name
from common.shapes.scenes import COLOURS, SHAPES, Scene
from common.worlds.scenes import NUM_CELLS


def lesson(
    scene: Scene,
    rng: random.Random,
    *,
    captions: float,
    noise: float = NOISE_SHARE,
) -> list[tuple[str, str]]:
    """A conversation about a scene as training text has it: (question, response) turns.

    With probability `captions` it is one turn with a noisy caption. Otherwise it has one turn per shape, in random
    order. The turn asks whether the shape is there; for half of the shapes that are there, it asks for any shape
    instead, and the response names this one with its colour.

    An absent partner counts as present with probability `noise`, in a random colour.
    """
    # The random draws and their order decide what a seed teaches the policy.
    if rng.random() < captions:
        question = rng.choice(CAPTION_PROMPTS)
        return [(question, noisy_caption(scene, rng, noise))]
    colour_of_shape = {item.shape: item.colour for item in scene.objects}
    for partner in scene.absent_partners:
        if rng.random() < noise:
            colour_of_shape[partner] = rng.choice(COLOURS)
    turns = []
    for shape in rng.sample(SHAPES, len(SHAPES)):
        is_present = shape in colour_of_shape
        if is_present and rng.random() < 0.5:
            response = name(colour_of_shape[shape], shape)
            turns.append((NAME_ONE, response))
        else:
            response = answer_text("yes" if is_present else "no")
            turns.append((ask(shape), response))
    return turns


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

"""Both engines read pixels: behind a blank picture of the same size their figures change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from common.data.image_conditions import GREY
from common.data.images import ImageStore, read
from common.protocols import Engine, GenerationRequest
from common.records import Prompt
from tests.actors.engines import Run
from tests.tiny_models import make_prompt

pytestmark = pytest.mark.real
LEAST = 0.01
"""Nats that a response's log-prob moves at least; rounding is below 1e-4."""


@pytest.fixture(scope="module")
def prompts(store: ImageStore) -> list[Prompt]:
    return [make_prompt(store, seed) for seed in range(50, 56)]


@pytest.fixture(scope="module")
def blind_prompts(
    prompts: list[Prompt],
    store: ImageStore,
) -> list[Prompt]:
    """The same prompts about grey images."""
    blind = []
    for prompt in prompts:
        (image,) = prompt.images
        # Of the same size, so that the number of image tokens stays.
        grey = Image.new("RGB", read(image).size, GREY)
        blind.append(replace(prompt, images=(store.add(grey),)))
    return blind


def test_scores_change_behind_a_blank_picture(
    engine: Engine,
    run: Run,
    prompts: list[Prompt],
    blind_prompts: list[Prompt],
) -> None:
    answer = "There is a star."
    answers = [(prompt, answer) for prompt in prompts]
    blind_answers = [(prompt, answer) for prompt in blind_prompts]
    with_image = run(engine.score(answers))
    without_image = run(engine.score(blind_answers))
    for left, right in zip(with_image, without_image, strict=True):
        difference = np.sum(left) - np.sum(right)
        assert abs(difference) > LEAST


@pytest.mark.parametrize("visible", [None, (0, 5, 17, 63)], ids=["whole", "shortened"])
def test_greedy_answers_change_behind_a_blank_picture(
    engine: Engine,
    run: Run,
    prompts: list[Prompt],
    blind_prompts: list[Prompt],
    visible: tuple[int, ...] | None,
) -> None:
    """Of six prompts some answers change; asked again, the caches do not give those of the blank pictures."""

    def answers(asked: list[Prompt]) -> list[tuple[int, ...]]:
        requests = []
        for prompt in asked:
            request = GenerationRequest(
                prompt.id,
                prompt,
                num_completions=1,
                temperature=0.0,
                max_tokens=12,
                visible_image_tokens=visible,
            )
            requests.append(request)
        groups = run(engine.generate(requests))
        return [group.completions[0].token_ids for group in groups]

    first = answers(prompts)
    assert first != answers(blind_prompts)
    assert first == answers(prompts)

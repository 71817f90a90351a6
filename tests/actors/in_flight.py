"""Answers that are being sampled while weights are swapped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from common.data.images import ImageStore
from common.protocols import Engine, GenerationRequest
from common.records import Completion, Prompt
from tests.actors.engines import Run
from tests.actors.hf_policy import HfPolicy
from tests.tiny_models import make_prompt

Publish = Callable[[int], Any]
"""Weight version -> manifest and arrays."""


async def _answers_over_a_swap(
    engine: Engine,
    prompts: Sequence[Prompt],
    short: Prompt,
    new: Any,
) -> list[Completion]:
    """Answers to `prompts`, the weights being swapped once the answer to `short` is there.

    The short request comes last, so by then the long answers have about as many tokens.
    """
    tasks = []
    for prompt in prompts:
        long_request = GenerationRequest(
            prompt.id,
            prompt,
            1,
            0.0,
            150,
        )
        tasks.append(asyncio.create_task(engine.generate([long_request])))
    last_request = GenerationRequest(
        short.id,
        short,
        1,
        0.0,
        8,
    )
    # A task as well: awaited directly it would overtake the tasks above.
    last = asyncio.create_task(engine.generate([last_request]))
    await last
    await engine.load_weights(*new)
    results = await asyncio.gather(*tasks)
    return [group.completions[0] for (group,) in results]  # type: ignore[union-attr]


def check_answers_in_flight(
    engine: Engine,
    store: ImageStore,
    run: Run,
    policies: tuple[HfPolicy, HfPolicy],
    publish: tuple[Publish, Publish],
) -> None:
    """An answer is greedy under the first policy before a swap and, given that part, under the second one after it."""
    prompts = [make_prompt(store, seed) for seed in range(71, 75)]
    short = make_prompt(store, 75)
    publish_old, publish_new = publish
    num_mixed = 0
    # Several tries: on a busy machine the long answers, too, can end before the new weights are there.
    for _ in range(5):
        before = engine.weight_version + 1
        after = before + 1
        run(engine.load_weights(*publish_old(before)))
        new = publish_new(after)
        answers = run(_answers_over_a_swap(engine, prompts, short, new))
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.min_weight_version == before, (
                "begun before the short one, so under the old weights"
            )
            if answer.max_weight_version == after:
                num_mixed += 1
                assert _goes_over(*policies, prompt, answer.token_ids)
        if num_mixed:
            return
    raise AssertionError("no answer was in flight during the swap")


def _goes_over(
    old: HfPolicy,
    new: HfPolicy,
    prompt: Prompt,
    token_ids: tuple[int, ...],
) -> bool:
    # Teacher forcing: what either policy would say next at every place of the answer.
    by_old = old.predicted(prompt, token_ids)
    by_new = new.predicted(prompt, token_ids)
    if by_old == by_new:
        return False
    # Where the swap came is not known.
    mixtures = set()
    for cut in range(1, len(token_ids)):
        mixture = by_old[:cut] + by_new[cut:]
        mixtures.add(mixture)
    return token_ids in mixtures

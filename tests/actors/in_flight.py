"""Answers that are under way while weights are swapped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from common.images import ImageStore
from common.protocols import Engine, GenerationRequest
from common.records import Completion, Prompt
from tests.actors.hf_policy import HfPolicy
from tests.tiny_models import make_prompt

Publish = Callable[[int], Any]
"""Weight version -> manifest and arrays."""


async def _swapped(
    engine: Engine, prompts: Sequence[Prompt], short: Prompt, new: Any
) -> list[Completion]:
    """Once a short answer that came last is there, the long ones have about as many tokens of theirs."""
    requests = [GenerationRequest(prompt.id, prompt, 1, 0.0, 150) for prompt in prompts]
    requests.append(GenerationRequest(short.id, short, 1, 0.0, 8))
    *long, last = [
        asyncio.create_task(engine.generate([request])) for request in requests
    ]
    await last
    await engine.load_weights(*new)
    return [group.completions[0] for (group,) in await asyncio.gather(*long)]  # type: ignore[union-attr]


def check_answers_in_flight(
    engine: Engine,
    store: ImageStore,
    run: Any,
    policies: tuple[HfPolicy, HfPolicy],
    publish: tuple[Publish, Publish],
) -> None:
    """What is sampled before a swap is the first policy's greedy answer, all after it the second's given that part."""
    *prompts, short = (make_prompt(store, seed) for seed in range(71, 76))
    num_mixed = 0
    for _ in range(
        5
    ):  # on a busy machine the long answers, too, can end before the new weights are there
        before, after = engine.weight_version + 1, engine.weight_version + 2
        run(engine.load_weights(*publish[0](before)))
        answers = run(_swapped(engine, prompts, short, publish[1](after)))
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
    old: HfPolicy, new: HfPolicy, prompt: Prompt, token_ids: tuple[int, ...]
) -> bool:
    first, second = (policy.predicted(prompt, token_ids) for policy in (old, new))
    cuts = range(1, len(token_ids))
    return first != second and any(
        token_ids == first[:cut] + second[cut:] for cut in cuts
    )

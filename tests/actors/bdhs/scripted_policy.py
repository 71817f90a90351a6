"""A scripted policy in the place of an engine, and what BDHS makes of its answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from actors.bdhs.sampling import (
    Outcome,
    generate_pairs,
)
from actors.bdhs.similarity import LexicalSimilarity
from common.config.bdhs import BdhsConfig
from common.protocols import GenerationRequest
from common.records import (
    Completion,
    Dropped,
    ImageRef,
    Message,
    Part,
    PreferencePair,
    Prompt,
    RolloutGroup,
)

TRUTH = "There is a red circle at the top. There is a blue star at the left."
Answer = Callable[[GenerationRequest], str | Dropped]
"""The scripted policy. An answer that ends in … has run into its token limit."""


def make_prompt(
    id: str = "p",
    reference: str | None = TRUTH,
    num_images: int = 1,
) -> Prompt:
    message = Message("user", (Part("image"),) * num_images)
    images = (ImageRef("00", "/none.png"),) * num_images
    return Prompt(
        id,
        (message,),
        images,
        reference,
    )


def group_of(
    request: GenerationRequest,
    answer: str | Dropped,
) -> RolloutGroup | Dropped:
    if isinstance(answer, Dropped):
        return answer
    # The scripted policy has no tokens to count.
    reason: Literal["stop", "length"] = "length" if answer.endswith("…") else "stop"
    completion = Completion(
        (),
        answer,
        0,
        0,
        reason,
    )
    return RolloutGroup(
        request.id,
        request.prompt,
        (),
        0,
        (completion,),
    )


def ten_tokens(prompt: Prompt) -> int:
    return 10


def outcomes(
    prompts: Iterable[Prompt],
    answer: Answer,
    config: BdhsConfig,
    *,
    window: int = 64,
    num_image_tokens: Callable[[Prompt], int] = ten_tokens,
) -> tuple[dict[str, Outcome], list[list[GenerationRequest]]]:
    """Outcomes by prompt id, and the calls that were made."""
    calls: list[list[GenerationRequest]] = []

    async def generate(
        requests: list[GenerationRequest],
    ) -> Sequence[RolloutGroup | Dropped]:
        calls.append(requests)
        return [group_of(request, answer(request)) for request in requests]

    async def collect() -> dict[str, Outcome]:
        by_id = {}
        async for outcome in generate_pairs(
            iter(list(prompts)),
            generate,
            config=config,
            similarity=LexicalSimilarity(),
            num_image_tokens=num_image_tokens,
            window=window,
        ):
            by_id[outcome.prompt_id] = outcome
        return by_id

    return asyncio.run(collect()), calls


def drop_of(outcome: Outcome) -> Dropped:
    assert isinstance(outcome.result, Dropped)
    return outcome.result


def pair_of(outcome: Outcome) -> PreferencePair:
    assert isinstance(outcome.result, PreferencePair)
    return outcome.result


def rest_of_sentence(request: GenerationRequest) -> str:
    """The truth after the request's prefix, up to the next full stop."""
    rest = TRUTH[len(request.prefix) :]
    return rest.split(".")[0] + "."


def seeded(request: GenerationRequest) -> str:
    """An answer that depends on the request alone; one in three repeats the truth as far as it can."""
    rng = random.Random(request.seed)
    if rng.random() < 1 / 3:
        return rest_of_sentence(request) if request.stop else TRUTH
    return f" a {rng.choice('abcdefgh')}{rng.choice('xyz')}."


def a_dog(request: GenerationRequest) -> str:
    return " a dog."


def similar(request: GenerationRequest) -> str:
    """The truth while guided, and in capitals at the last attempt."""
    return rest_of_sentence(request) if request.stop else TRUTH.upper()

"""BDHS: rejected answers from the policy's own bias (arXiv 2407.02477, section 3.4 and Algorithm 1).

    y+   There is a red circle at the top.     There is a blue star at the left.
    cut  There is a red|                       There is a blue star|            at random word boundaries
    ask  image with few tokens left + true sentences before + head -> continuation up to the first full stop
    y-   There is a red ring at the center.    There is a blue star at the top.

The prefix of every sentence is the *true* text before it, never a corrupted one, so all sentences of all examples are
in flight together. An attempt whose y- is too similar to y+ is repeated with a new mask and new cuts; the last attempt
is unguided, a whole answer from the masked image, and is taken whatever its similarity.

This is the variant `attention`. `noise` does the same with a noised image in place of hidden tokens, `unguided` asks
for a whole answer at every attempt. The pair always names the clean image.

Every draw comes from (seed, prompt id, attempt): results do not depend on batches, workers or on being resumed.
Heads and prefixes end without a space and continuations bring their own (see actors/sentences.py), so joining is plain
concatenation. Hidden tokens are left out of the sequence (`visible_image_tokens`), which equals masking them: see
actors/masked_forward.py.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from actors.sentences import flip_answer, split_point, split_sentences
from actors.similarity import Similarity
from common.bdhs_config import BdhsConfig
from common.errors import UserError
from common.protocols import GenerationRequest, ImageNoise
from common.records import Dropped, PreferencePair, Prompt, Response, RolloutGroup
from common.seeding import derive_seed

Generate: TypeAlias = Callable[
    [list[GenerationRequest]], Awaitable[Sequence[RolloutGroup | Dropped]]
]
"""One result per request, in order."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one prompt: the heads of its sentences and the requests that complete them, one each."""

    prompt: Prompt
    number: int
    heads: tuple[str, ...]
    requests: tuple[GenerationRequest, ...]
    num_visible: int
    num_image_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a prompt: its pair, or why there is none. `attempts` counts those made, 0 if it was refused.

    `similarity` of y- and y+ and the number of image tokens, visible and in all, are those of the last attempt.
    """

    result: PreferencePair | Dropped
    prompt_id: str
    attempts: int = 0
    similarity: float | None = None
    num_visible: int = 0
    num_image_tokens: int = 0


def draw_visible(
    num_image_tokens: int, rho: float, rng: random.Random
) -> tuple[int, ...]:
    """Indices of the image tokens that stay visible: token i iff its draw from U(0, 1) is >= rho."""
    return tuple(index for index in range(num_image_tokens) if rng.random() >= rho)


def draw_attempt(
    prompt: Prompt, number: int, num_image_tokens: int, config: BdhsConfig
) -> Attempt:
    """The mask or noise, cuts and requests of attempt `number` (from 1); the last one is unguided in every variant."""
    assert prompt.reference is not None
    mask_seed, noise_seed, text_seed = (
        derive_seed(config.seed, prompt.id, number, use)
        for use in ("mask", "noise", "sentences")
    )
    noise = (
        ImageNoise(config.noise_step, noise_seed) if config.variant == "noise" else None
    )
    visible = (
        None
        if noise
        else draw_visible(num_image_tokens, config.rho, random.Random(mask_seed))
    )
    guided = config.variant != "unguided" and number < config.max_attempts
    text_rng = random.Random(text_seed)
    cuts = (
        list(_cuts(prompt.reference, config.flip_prob, text_rng))
        if guided
        else [("", "")]
    )
    requests = tuple(
        GenerationRequest(
            id=f"{prompt.id}/{number}/{index}",
            prompt=prompt,
            num_completions=1,
            temperature=config.temperature,
            max_tokens=config.max_tokens if guided else config.max_answer_tokens,
            seed=derive_seed(config.seed, prompt.id, number, "sample", index),
            prefix=before + head,
            stop=config.stop if guided else (),
            visible_image_tokens=visible,
            noise=noise,
        )
        for index, (before, head) in enumerate(cuts)
    )
    num_visible = num_image_tokens if visible is None else len(visible)
    return Attempt(
        prompt,
        number,
        tuple(head for _, head in cuts),
        requests,
        num_visible,
        num_image_tokens,
    )


def _cuts(
    answer: str, flip_prob: float, rng: random.Random
) -> Iterator[tuple[str, str]]:
    """The true text before each sentence and the sentence's head."""
    before = ""
    for sentence in split_sentences(answer):
        flipped = flip_answer(sentence)
        if flipped is not None and rng.random() < flip_prob:
            text, end = flipped
            yield before, text[: split_point(text, rng, first=end)]
        else:
            yield before, sentence[: split_point(sentence, rng)]
        before += sentence


def assemble(
    attempt: Attempt, groups: Sequence[RolloutGroup | Dropped]
) -> str | Dropped:
    """y-, the concatenation of head + continuation, or why this attempt gave none.

    Reasons: what the engine gave, `cut_off` when a continuation ran into its token limit, `empty`.
    """
    pieces = []
    for head, group in zip(attempt.heads, groups, strict=True):
        if isinstance(group, Dropped):
            return Dropped(attempt.prompt.id, group.reason, group.detail)
        completion = group.completions[0]
        if completion.finish_reason == "length":
            return Dropped(
                attempt.prompt.id,
                "cut_off",
                f"no end of sentence: {head + completion.text!r}",
            )
        pieces.append(head + completion.text)
    text = "".join(pieces)
    return (
        text
        if text.strip()
        else Dropped(attempt.prompt.id, "empty", "the policy answered nothing")
    )


_REPEATABLE = frozenset({"cut_off", "empty"})
"""Drops that another draw may cure; the engine's own reasons would come back."""


def decide(
    attempt: Attempt,
    answer: str | Dropped,
    similarity: float | None,
    config: BdhsConfig,
) -> Outcome | None:
    """The outcome of an attempt; None asks for another one. `similarity` is None iff there is no answer."""
    prompt, last = attempt.prompt, attempt.number >= config.max_attempts
    assert prompt.reference is not None
    result: PreferencePair | Dropped
    if isinstance(answer, Dropped):
        if answer.reason in _REPEATABLE and not last:
            return None
        result = answer
    else:
        assert similarity is not None
        if similarity >= config.similarity_threshold and not last:
            return None
        result = PreferencePair(
            f"bdhs/{prompt.id}",
            prompt,
            Response(prompt.reference),
            Response(answer),
            source="bdhs",
        )
        if answer.strip() == prompt.reference.strip():
            result = Dropped(
                prompt.id, "identical", "the last attempt repeated the chosen answer"
            )
    return Outcome(
        result,
        prompt.id,
        attempt.number,
        similarity,
        attempt.num_visible,
        attempt.num_image_tokens,
    )


async def generate_pairs(
    prompts: Iterator[Prompt],
    generate: Generate,
    *,
    config: BdhsConfig,
    similarity: Similarity,
    num_image_tokens: Callable[[Prompt], int],
    window: int = 64,
) -> AsyncIterator[Outcome]:
    """One outcome per prompt, as each is done; all sentences of `window` prompts are with the engine at a time.

    `prompts` is only drawn from as places become free, so several of these may share one iterator, one per engine.
    `num_image_tokens(prompt)` says how many tokens the policy sees of its image; what it raises as a UserError with a
    `reason` drops the prompt. So are prompts without a reference, with one longer than `config.max_reference_chars`, or
    without exactly one image (`no_reference`, `answer_too_long`, `image_count`).
    """
    active: list[Attempt] = []
    while True:
        while len(active) < window and (prompt := next(prompts, None)) is not None:
            refused = _refuse(prompt, config)
            if refused is None:
                try:
                    active.append(
                        draw_attempt(prompt, 1, num_image_tokens(prompt), config)
                    )
                    continue
                except UserError as error:
                    if not hasattr(error, "reason"):
                        raise
                    refused = Dropped(prompt.id, error.reason, str(error))
            yield Outcome(refused, prompt.id)
        if not active:
            return
        groups = iter(
            await generate(
                [request for attempt in active for request in attempt.requests]
            )
        )
        answers = [
            assemble(attempt, [next(groups) for _ in attempt.requests])
            for attempt in active
        ]
        values = _similarities(active, answers, similarity)
        undecided = []
        for attempt, answer, value in zip(active, answers, values, strict=True):
            outcome = decide(attempt, answer, value, config)
            if outcome is None:
                undecided.append(
                    draw_attempt(
                        attempt.prompt,
                        attempt.number + 1,
                        attempt.num_image_tokens,
                        config,
                    )
                )
            else:
                yield outcome
        active = undecided


def _similarities(
    attempts: Sequence[Attempt],
    answers: Sequence[str | Dropped],
    similarity: Similarity,
) -> list[float | None]:
    """Of each y- to its y+, in one batch; None where there is no y-."""
    texts = [
        (a, t.prompt.reference or "")
        for t, a in zip(attempts, answers, strict=True)
        if isinstance(a, str)
    ]
    values = iter(similarity(texts))
    return [next(values) if isinstance(answer, str) else None for answer in answers]


def _refuse(prompt: Prompt, config: BdhsConfig) -> Dropped | None:
    num_chars, limit = len(prompt.reference or ""), config.max_reference_chars
    if num_chars > limit:
        return Dropped(
            prompt.id,
            "answer_too_long",
            f"expected an answer of at most {limit} characters, got {num_chars}",
        )
    if not (prompt.reference or "").strip():
        return Dropped(prompt.id, "no_reference", "BDHS needs a true answer to corrupt")
    if len(prompt.images) != 1:
        return Dropped(
            prompt.id,
            "image_count",
            f"BDHS needs exactly one image, got {len(prompt.images)}",
        )
    return None

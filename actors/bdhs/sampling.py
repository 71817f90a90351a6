"""BDHS: rejected answers from the policy's own bias (arXiv 2407.02477, section 3.4 and Algorithm 1).

    y+   There is a red circle at the top.     There is a blue star at the left.
    cut  There is a red|                       There is a blue star|            at random word boundaries
    ask  image with few tokens left + true sentences before + head -> continuation up to the first full stop
    y-   There is a red ring at the center.    There is a blue star at the top.

The prefix of every sentence is the *true* text before it, never a corrupted one, so all sentences of all examples are
in flight together. An attempt whose y- is too similar to y+ is repeated with a new mask and new cuts. The last attempt
is unguided, a whole answer from the masked image, and is accepted whatever its similarity.

This is the variant `attention`. `noise` does the same with a noised image in place of hidden tokens; `unguided` asks
for a whole answer at every attempt. The pair always names the clean image.

Every draw comes from (seed, prompt id, attempt): results do not depend on batches, workers or on being resumed.
Heads and prefixes end without a space and continuations bring their own (see actors/bdhs/sentences.py), so
joining is plain concatenation. Hidden tokens are left out of the sequence (`visible_image_tokens`), which equals
masking them: see benchmarks/masked_forward.py.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from actors.bdhs.sentences import flip_answer, split_point, yes_or_no
from actors.bdhs.similarity import Similarity
from common.config.bdhs import BdhsConfig
from common.end_marks import without_end_mark
from common.errors import UserError
from common.protocols import GenerationRequest, ImageNoise
from common.records import Dropped, PreferencePair, Prompt, Response, RolloutGroup
from common.seeding import derive_seed
from common.sentences import split_sentences

Result: TypeAlias = RolloutGroup | Dropped
Generate: TypeAlias = Callable[[list[GenerationRequest]], Awaitable[Sequence[Result]]]
"""Answers requests: one result per request, in order."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one prompt: the heads of its sentences and, for each, the request that completes it."""

    prompt: Prompt
    number: int
    heads: tuple[str, ...]
    requests: tuple[GenerationRequest, ...]
    num_visible: int
    num_image_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The pair of a prompt, or why there is none.

    Attributes:
        result: pair or reason.
        prompt_id: of the prompt that was given.
        attempts: how many were made; 0 if the prompt was refused.
        similarity: of y- and y+ of the last attempt, in [-1, 1]; None without a y-.
        num_visible: image tokens that the last attempt could see.
        num_image_tokens: image tokens of the prompt.
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
    visible = []
    for index in range(num_image_tokens):
        draw = rng.random()
        if draw >= rho:
            visible.append(index)
    return tuple(visible)


def draw_attempt(
    prompt: Prompt, number: int, num_image_tokens: int, config: BdhsConfig
) -> Attempt:
    """Draw mask or noise, cuts and requests of attempt `number`, counted from 1.

    The last attempt is unguided in every variant.
    """
    assert prompt.reference is not None
    mask_seed = derive_seed(config.seed, prompt.id, number, "mask")
    noise_seed = derive_seed(config.seed, prompt.id, number, "noise")
    text_seed = derive_seed(config.seed, prompt.id, number, "sentences")

    # Noise hides nothing: all tokens of the noised image are seen.
    noise = None
    visible = None
    num_visible = num_image_tokens
    if config.variant == "noise":
        noise = ImageNoise(config.noise_step, noise_seed)
    else:
        mask_rng = random.Random(mask_seed)
        visible = draw_visible(num_image_tokens, config.rho, mask_rng)
        num_visible = len(visible)

    is_last = number >= config.max_attempts
    is_guided = config.variant != "unguided" and not is_last
    # An unguided attempt completes one empty head: a whole answer.
    cuts = [("", "")]
    if is_guided:
        text_rng = random.Random(text_seed)
        # A generator of its own, so that the mask does not depend on the text.
        cuts = list(_cuts(prompt.reference, config.flip_prob, text_rng))

    requests = []
    for index, (before, head) in enumerate(cuts):
        sample_seed = derive_seed(config.seed, prompt.id, number, "sample", index)
        request = GenerationRequest(
            id=f"{prompt.id}/{number}/{index}",
            prompt=prompt,
            num_completions=1,
            temperature=config.temperature,
            max_tokens=config.max_tokens if is_guided else config.max_answer_tokens,
            seed=sample_seed,
            prefix=before + head,
            stop=config.stop if is_guided else (),
            visible_image_tokens=visible,
            noise=noise,
        )
        requests.append(request)
    return Attempt(
        prompt,
        number,
        tuple(head for _, head in cuts),
        tuple(requests),
        num_visible,
        num_image_tokens,
    )


def _cuts(
    answer: str, flip_prob: float, rng: random.Random
) -> Iterator[tuple[str, str]]:
    """For each sentence the true text before it and the sentence's head, its yes or no flipped by chance."""
    before = ""
    for sentence in split_sentences(answer):
        flipped = flip_answer(sentence)
        # The draw is made only where there is something to flip: it is part of the seed stream.
        if flipped is not None and rng.random() < flip_prob:
            text, word_end = flipped
            cut = split_point(text, rng, first=word_end)
        else:
            text = sentence
            cut = split_point(text, rng)
        yield before, text[:cut]
        # The true sentence, even if its head was flipped.
        before += sentence


def assemble(
    attempt: Attempt, groups: Sequence[RolloutGroup | Dropped]
) -> str | Dropped:
    """Concatenate heads and continuations to y-, or say why this attempt gave none.

    Reasons: the engine's own, `cut_off` when a continuation ran into its token limit, `empty`.
    """
    # The first sentence without a continuation decides: an answer has all of them or none.
    prompt_id = attempt.prompt.id
    pieces = []
    for head, group in zip(attempt.heads, groups, strict=True):
        if isinstance(group, Dropped):
            return Dropped(prompt_id, group.reason, group.detail)
        completion = group.completions[0]
        sentence = without_end_mark(head + completion.text)
        if completion.finish_reason == "length":
            return Dropped(prompt_id, "cut_off", f"no end of sentence: {sentence!r}")
        pieces.append(sentence)
    text = "".join(pieces)
    if not text.strip():
        return Dropped(prompt_id, "empty", "the policy answered nothing")
    return text


_REPEATABLE = frozenset({"cut_off", "empty"})
"""Drop reasons that another draw may avoid; the engine's own would come back."""


def decide(
    attempt: Attempt,
    answer: str | Dropped,
    similarity: float | None,
    config: BdhsConfig,
) -> Outcome | None:
    """The outcome of an attempt, or None if another one is to be made.

    Args:
        attempt: the attempt that was answered.
        answer: y-, or why there is none.
        similarity: of y- and y+; None iff there is no y-.
        config: similarity threshold and number of attempts.
    """
    prompt = attempt.prompt
    is_last = attempt.number >= config.max_attempts
    if not is_last and _wants_another(answer, similarity, config):
        return None
    return Outcome(
        _pair_of(prompt, answer),
        prompt.id,
        attempt.number,
        similarity,
        attempt.num_visible,
        attempt.num_image_tokens,
    )


def _wants_another(
    answer: str | Dropped, similarity: float | None, config: BdhsConfig
) -> bool:
    if isinstance(answer, Dropped):
        return answer.reason in _REPEATABLE
    assert similarity is not None
    return similarity >= config.similarity_threshold


def _pair_of(
    prompt: Prompt,
    answer: str | Dropped,
) -> PreferencePair | Dropped:
    if isinstance(answer, Dropped):
        return answer
    assert prompt.reference is not None
    # A pair of two equal answers would teach nothing.
    if answer.strip() == prompt.reference.strip():
        return Dropped(
            prompt.id, "identical", "the last attempt repeated the chosen answer"
        )
    return PreferencePair(
        f"bdhs/{prompt.id}",
        prompt,
        Response(prompt.reference),
        Response(answer),
        source="bdhs",
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
    """One outcome per prompt, as soon as it is decided.

    All sentences of `window` prompts are with the engine at a time. Prompts are drawn only as places become free, so
    several generators may share one iterator, one per engine.

    Args:
        prompts: dropped are those without a reference, with a reference longer than `config.max_reference_chars`,
            without exactly one image (`no_reference`, `answer_too_long`, `image_count`), and those about a yes/no
            question whose answer `config.yes_no` leaves out (`yes_no`).
        generate: the policy's engine.
        config: masks, attempts, sampling.
        similarity: compares y- with y+.
        num_image_tokens: how many tokens the policy sees of a prompt's image. A UserError of it that has a `reason`
            drops the prompt.
        window: prompts in flight.
    """
    active: list[Attempt] = []
    while True:
        while len(active) < window:
            prompt = next(prompts, None)
            if prompt is None:
                break
            first = _first_attempt(prompt, num_image_tokens, config)
            if isinstance(first, Attempt):
                active.append(first)
            else:
                yield Outcome(first, prompt.id)
        if not active:
            return

        # Attempts of all kinds go out together; those that are repeated join the next round.
        answers = await _answers(active, generate)
        similarities = _similarities(active, answers, similarity)
        undecided = []
        for attempt, answer, value in zip(active, answers, similarities, strict=True):
            outcome = decide(attempt, answer, value, config)
            if outcome is not None:
                yield outcome
                continue
            undecided.append(
                draw_attempt(
                    attempt.prompt,
                    attempt.number + 1,
                    attempt.num_image_tokens,
                    config,
                )
            )
        active = undecided


def _first_attempt(
    prompt: Prompt, num_image_tokens: Callable[[Prompt], int], config: BdhsConfig
) -> Attempt | Dropped:
    refusal = _refuse(prompt, config)
    if refusal is not None:
        return refusal
    try:
        return draw_attempt(
            prompt,
            1,
            num_image_tokens(prompt),
            config,
        )
    except UserError as error:
        # Errors without a reason are about the configuration, not about this prompt.
        if not hasattr(error, "reason"):
            raise
        return Dropped(prompt.id, error.reason, str(error))


async def _answers(
    attempts: Sequence[Attempt], generate: Generate
) -> list[str | Dropped]:
    """y- of each attempt, or why there is none; all requests go out in one call."""
    requests: list[GenerationRequest] = []
    for attempt in attempts:
        requests.extend(attempt.requests)
    groups = await generate(requests)
    answers = []
    start = 0
    for attempt in attempts:
        end = start + len(attempt.requests)
        answer = assemble(attempt, groups[start:end])
        answers.append(answer)
        start = end
    return answers


def _similarities(
    attempts: Sequence[Attempt],
    answers: Sequence[str | Dropped],
    similarity: Similarity,
) -> list[float | None]:
    """Similarity of each y- to its y+, measured in one batch; None where there is no y-."""
    texts = []
    for attempt, answer in zip(attempts, answers, strict=True):
        if isinstance(answer, str):
            texts.append((answer, attempt.prompt.reference or ""))
    measured = iter(similarity(texts))
    values: list[float | None] = []
    for answer in answers:
        value = next(measured) if isinstance(answer, str) else None
        values.append(value)
    return values


def _refuse(prompt: Prompt, config: BdhsConfig) -> Dropped | None:
    reference = prompt.reference or ""
    limit = config.max_reference_chars
    if len(reference) > limit:
        return Dropped(
            prompt.id,
            "answer_too_long",
            f"expected an answer of at most {limit} characters, got {len(reference)}",
        )
    # After the length, so that a huge text is not copied.
    if not reference.strip():
        return Dropped(prompt.id, "no_reference", "BDHS needs a true answer to corrupt")
    if not prompt.images:
        return Dropped(prompt.id, "image_count", "BDHS needs an image, got none")
    said = yes_or_no(reference)
    if said is not None and config.yes_no not in ("both", said):
        return Dropped(prompt.id, "yes_no", f"bdhs.yes_no is {config.yes_no}")
    return None

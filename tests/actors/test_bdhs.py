"""BDHS against a scripted policy: masks, prefixes, attempts, drops, seeds, statistics."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.bdhs import Outcome, assemble, draw_attempt, draw_visible, generate_pairs
from actors.bdhs_stats import note_of, summarise
from actors.similarity import LexicalSimilarity
from common.bdhs_config import BdhsConfig
from common.errors import UserError
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


def make_prompt(
    id: str = "p", reference: str | None = TRUTH, num_images: int = 1
) -> Prompt:
    images = (ImageRef("00", "/none.png"),) * num_images
    return Prompt(
        id, (Message("user", (Part("image"),) * num_images),), images, reference
    )


def group_of(
    request: GenerationRequest, answer: str | Dropped
) -> RolloutGroup | Dropped:
    if isinstance(answer, Dropped):
        return answer
    reason = "length" if answer.endswith("…") else "stop"
    return RolloutGroup(
        request.id, request.prompt, (), 0, (Completion((), answer, 0, 0, reason),)
    )  # type: ignore[arg-type]


def outcomes(
    prompts: Iterable[Prompt], answer: Answer, config: BdhsConfig, window: int = 64
) -> tuple[dict[str, Outcome], list[list[GenerationRequest]]]:
    calls: list[list[GenerationRequest]] = []

    async def generate(
        requests: list[GenerationRequest],
    ) -> Sequence[RolloutGroup | Dropped]:
        calls.append(requests)
        return [group_of(request, answer(request)) for request in requests]

    async def collect() -> dict[str, Outcome]:
        stream = generate_pairs(
            iter(list(prompts)),
            generate,
            config=config,
            similarity=LexicalSimilarity(),
            num_image_tokens=lambda prompt: 10,
            window=window,
        )
        return {outcome.prompt_id: outcome async for outcome in stream}

    return asyncio.run(collect()), calls


def seeded(request: GenerationRequest) -> str:
    """An answer that depends on the request alone; one in three repeats the truth as far as it can."""
    rng = random.Random(request.seed)
    if rng.random() < 1 / 3:
        rest = TRUTH[len(request.prefix) :]
        return rest[: rest.index(".") + 1] if request.stop else rest
    return f" a {rng.choice('abcdefgh')}{rng.choice('xyz')}."


@given(st.integers(0, 50), st.floats(0, 1), st.integers())
def test_mask_follows_its_draws(num_tokens: int, rho: float, seed: int) -> None:
    rng = random.Random(seed)
    expected = [
        i
        for i, draw in enumerate(rng.random() for _ in range(num_tokens))
        if draw >= rho
    ]
    assert list(draw_visible(num_tokens, rho, random.Random(seed))) == expected


def test_rho_zero_hides_nothing_and_one_everything() -> None:
    assert draw_visible(9, 0.0, random.Random(1)) == tuple(range(9))
    assert draw_visible(9, 1.0, random.Random(1)) == ()
    assert fmean(
        len(draw_visible(576, 0.99, random.Random(i))) for i in range(400)
    ) == pytest.approx(5.76, rel=0.1)


@given(st.integers(0, 10_000))
def test_prefixes_are_true_text_and_never_end_in_a_space(seed: int) -> None:
    attempt = draw_attempt(make_prompt(), 1, 10, BdhsConfig(seed=seed, rho=0.5))
    first, second = attempt.requests
    assert TRUTH.startswith(first.prefix) and first.prefix == attempt.heads[0]
    assert second.prefix == "There is a red circle at the top." + attempt.heads[1]
    assert TRUTH.startswith(second.prefix) and not second.prefix.endswith(" ")
    assert first.visible_image_tokens == second.visible_image_tokens
    assert (
        first.seed != second.seed
        and first.stop == (".",)
        and first.num_completions == 1
    )


def test_answer_is_heads_and_continuations() -> None:
    attempt = draw_attempt(make_prompt(), 1, 10, BdhsConfig())
    groups = [group_of(request, f" {i}.") for i, request in enumerate(attempt.requests)]
    assert assemble(attempt, groups) == f"{attempt.heads[0]} 0.{attempt.heads[1]} 1."


def test_flip_changes_the_head_but_not_the_truth_before_the_next_sentence() -> None:
    prompt = make_prompt(reference="Yes. No, it is blue.")
    always = draw_attempt(prompt, 1, 10, BdhsConfig(flip_prob=1))
    assert always.heads[0] == "No" and always.heads[1].startswith(" Yes")
    assert always.requests[1].prefix.startswith("Yes. Yes")
    never = draw_attempt(prompt, 1, 10, BdhsConfig(flip_prob=0))
    assert never.heads[0] == "" and not never.heads[1].startswith(" Yes")


def test_last_attempt_is_unguided_and_taken_although_similar() -> None:
    def answer(request: GenerationRequest) -> str:
        return (
            TRUTH[len(request.prefix) :].split(".")[0] + "."
            if request.stop
            else TRUTH.upper()
        )

    found, calls = outcomes(
        [make_prompt()], answer, BdhsConfig(max_attempts=3, rho=0.5)
    )
    assert [len(requests) for requests in calls] == [2, 2, 1]
    (last,) = calls[2]
    assert last.prefix == "" and last.stop == () and last.max_tokens == 256
    masks = {requests[0].visible_image_tokens for requests in calls}
    outcome = found["p"]
    assert isinstance(outcome.result, PreferencePair)
    assert (outcome.result.rejected.text, outcome.result.chosen.text) == (
        TRUTH.upper(),
        TRUTH,
    )
    assert (outcome.attempts, outcome.similarity) == (3, pytest.approx(1.0))
    assert len(masks) == 3, "each attempt draws its own"


def test_noise_attempts_keep_every_token_and_draw_new_noise() -> None:
    config = BdhsConfig(variant="noise", noise_step=400, rho=0.9, max_attempts=3)
    attempts = [draw_attempt(make_prompt(), number, 10, config) for number in (1, 2, 3)]
    noises = []
    for attempt in attempts:
        (noise,) = {request.noise for request in attempt.requests}
        assert noise is not None and noise.step == 400
        assert all(request.visible_image_tokens is None for request in attempt.requests)
        assert attempt.num_visible == attempt.num_image_tokens == 10
        noises.append(noise.seed)
    assert (
        len(set(noises)) == 3
        and noises[0]
        != draw_attempt(make_prompt("q"), 1, 10, config).requests[0].noise.seed
    )  # type: ignore[union-attr]
    assert [len(attempt.requests) for attempt in attempts] == [2, 2, 1]
    assert attempts[0].heads == draw_attempt(make_prompt(), 1, 10, BdhsConfig()).heads
    found, _ = outcomes([make_prompt()], lambda request: " a dog.", config)
    assert (
        isinstance(pair := found["p"].result, PreferencePair)
        and pair.prompt == make_prompt()
    )


def test_every_attempt_of_the_unguided_variant_is_a_whole_answer_from_a_masked_image() -> (
    None
):
    """Similar answers are refused until the last attempt, as in the other variants."""
    config = BdhsConfig(variant="unguided", rho=0.5, max_attempts=3)
    found, calls = outcomes([make_prompt()], lambda request: TRUTH.upper(), config)
    for (request,) in calls:
        assert (request.prefix, request.stop, request.max_tokens, request.noise) == (
            "",
            (),
            256,
            None,
        )
        assert request.visible_image_tokens is not None
    assert len({requests[0].visible_image_tokens for requests in calls}) == 3
    assert isinstance(found["p"].result, PreferencePair) and found["p"].attempts == 3
    fresh, calls = outcomes([make_prompt()], lambda request: "A dog runs.", config)
    assert (fresh["p"].attempts, len(calls)) == (1, 1)


def test_masks_and_cuts_are_redrawn_for_each_attempt() -> None:
    config = BdhsConfig(rho=0.5)
    attempts = [
        draw_attempt(make_prompt(), number, 64, config) for number in (1, 2, 3, 4)
    ]
    assert len({attempt.requests[0].visible_image_tokens for attempt in attempts}) == 4
    assert len({attempt.requests[0].seed for attempt in attempts}) == 4


@pytest.mark.parametrize(
    ("reason", "answer", "attempts"),
    [
        (
            "identical",
            lambda r: (
                TRUTH[len(r.prefix) :].split(".")[0] + "." if r.stop else TRUTH + "\n"
            ),
            5,
        ),
        ("cut_off", lambda r: " and on and on…", 5),
        ("prompt_too_long", lambda r: Dropped(r.id, "prompt_too_long"), 1),
        ("empty", lambda r: "", None),
    ],
)
def test_drops_are_counted(reason: str, answer: Answer, attempts: int | None) -> None:
    config = BdhsConfig() if attempts else BdhsConfig(max_attempts=1)
    found, _ = outcomes([make_prompt()], answer, config)
    result = found["p"].result
    assert isinstance(result, Dropped) and (result.id, result.reason) == ("p", reason)
    assert found["p"].attempts == (attempts or 1)


def test_prompts_that_cannot_be_used_are_refused_without_a_request() -> None:
    bad = [
        make_prompt("a", None),
        make_prompt("b", " "),
        make_prompt("c", num_images=0),
        make_prompt("d", num_images=2),
        make_prompt("e", "A cat. " * 1_500_000),
    ]
    found, calls = outcomes(bad, seeded, BdhsConfig())
    reasons = [found[id].result.reason for id in "abcde"]  # type: ignore[union-attr]
    assert reasons == [
        "no_reference",
        "no_reference",
        "image_count",
        "image_count",
        "answer_too_long",
    ]
    assert calls == []
    assert len(found["e"].result.detail) < 100  # type: ignore[union-attr]


@pytest.mark.parametrize("reference", ["Red", "Yes.", "?", "  no", "猫"])
def test_an_answer_of_one_word_is_continued_from_nothing_or_flipped(
    reference: str,
) -> None:
    found, calls = outcomes(
        [make_prompt(reference=reference)], lambda request: " a dog.", BdhsConfig()
    )
    (request,) = calls[0]
    assert request.prefix.strip().lower() in ("", "yes", "no")
    assert isinstance(found["p"].result, PreferencePair)


def test_an_unreadable_image_drops_its_prompt_only() -> None:
    class Unreadable(UserError):
        reason = "image_missing"

    def count(prompt: Prompt) -> int:
        if prompt.id == "a":
            raise Unreadable("gone")
        return 10

    async def generate(
        requests: list[GenerationRequest],
    ) -> list[RolloutGroup | Dropped]:
        return [group_of(request, " a dog.") for request in requests]

    async def collect() -> list[Outcome]:
        stream = generate_pairs(
            iter([make_prompt("a"), make_prompt("b")]),
            generate,
            config=BdhsConfig(),
            similarity=LexicalSimilarity(),
            num_image_tokens=count,
        )
        return [outcome async for outcome in stream]

    first, second = asyncio.run(collect())
    assert isinstance(first.result, Dropped) and first.result.reason == "image_missing"
    assert isinstance(second.result, PreferencePair)


@settings(deadline=None, max_examples=25)
@given(
    st.permutations([f"p{i}" for i in range(12)]), st.integers(1, 20), st.integers(0, 3)
)
def test_outcomes_do_not_depend_on_order_or_batch(
    ids: list[str], window: int, seed: int
) -> None:
    config = BdhsConfig(seed=seed, rho=0.8, similarity_threshold=0.6)
    expected, _ = outcomes([make_prompt(f"p{i}") for i in range(12)], seeded, config)
    assert outcomes(map(make_prompt, ids), seeded, config, window)[0] == expected


def test_all_sentences_of_all_prompts_are_in_flight_together() -> None:
    _, calls = outcomes(
        [make_prompt(f"p{i}") for i in range(10)],
        lambda r: " a dog.",
        BdhsConfig(),
        window=8,
    )
    assert [len(requests) for requests in calls] == [16, 4]


def test_statistics_by_hand() -> None:
    """Two pairs at attempt 1, one at 2, one refused, one dropped at 2: of four tried, two needed more than one."""
    pair = PreferencePair("bdhs/p", make_prompt(), None, None, "bdhs")  # type: ignore[arg-type]
    made = [
        Outcome(pair, "a", 1, 0.2, 1, 10),
        Outcome(pair, "b", 1, 0.4, 2, 10),
        Outcome(pair, "c", 2, 0.9, 3, 10),
        Outcome(Dropped("d", "identical"), "d", 2, 1.0, 2, 10),
        Outcome(Dropped("e", "no_reference"), "e"),
    ]
    stats = summarise([note_of(outcome) for outcome in made], max_attempts=3)
    assert stats["accepted_per_attempt"] == {"1": 2, "2": 1, "3": 0}
    assert stats["dropped"] == {"identical": 1, "no_reference": 1}
    assert (
        stats["num_prompts"],
        stats["num_pairs"],
        stats["another_attempt_frac"],
    ) == (5, 3, 0.5)
    assert (stats["mean_visible_tokens"], stats["visible_frac"]) == (2.0, 0.2)
    assert stats["similarity"]["0.5"] == 0.4 and stats["similarity"][
        "0.75"
    ] == pytest.approx(0.65)
    assert summarise([], 2)["similarity"] == {}


def test_quantile_interpolates() -> None:
    """Of 1, 2, 4: a quarter of the way lies half way between the first two."""
    notes = []
    for value in (4.0, 1.0, 2.0):
        notes.append(
            {
                "dropped": None,
                "attempts": 1,
                "similarity": value,
                "num_visible": 1,
                "num_image_tokens": 1,
            }
        )
    quantiles = summarise(notes, 1)["similarity"]
    shares = ("0.0", "0.25", "0.5", "1.0")
    assert [quantiles[share] for share in shares] == [1.0, 1.5, 2.0, 4.0]

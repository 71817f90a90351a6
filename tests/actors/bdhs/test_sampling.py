"""BDHS against a scripted policy: masks, prefixes, attempts, drops, seeds, statistics."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.bdhs.sampling import (
    Outcome,
    assemble,
    draw_attempt,
    draw_visible,
    generate_pairs,
)
from actors.bdhs.similarity import LexicalSimilarity
from actors.bdhs.stats import note_of, summarise
from common.config.bdhs import BdhsConfig
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


@given(st.integers(0, 50), st.floats(0, 1), st.integers())
def test_mask_follows_its_draws(
    num_tokens: int,
    rho: float,
    seed: int,
) -> None:
    rng = random.Random(seed)
    draws = [rng.random() for _ in range(num_tokens)]
    expected = [index for index, draw in enumerate(draws) if draw >= rho]
    visible = draw_visible(num_tokens, rho, random.Random(seed))
    assert list(visible) == expected


def test_rho_zero_hides_nothing_and_one_everything() -> None:
    assert draw_visible(9, 0.0, random.Random(1)) == tuple(range(9))
    assert draw_visible(9, 1.0, random.Random(1)) == ()
    counts = []
    for seed in range(400):
        visible = draw_visible(576, 0.99, random.Random(seed))
        counts.append(len(visible))
    assert fmean(counts) == pytest.approx(5.76, rel=0.1)


@given(st.integers(0, 10_000))
def test_prefixes_are_true_text_and_never_end_in_a_space(seed: int) -> None:
    attempt = draw_attempt(
        make_prompt(),
        1,
        10,
        BdhsConfig(seed=seed, rho=0.5),
    )
    first, second = attempt.requests
    first_head, second_head = attempt.heads
    assert TRUTH.startswith(first.prefix)
    assert first.prefix == first_head
    # Never the corrupted text of the sentence before.
    assert TRUTH.startswith(second.prefix)
    assert second.prefix == "There is a red circle at the top." + second_head
    assert not second.prefix.endswith(" ")
    assert first.visible_image_tokens == second.visible_image_tokens
    assert first.seed != second.seed
    assert first.stop == (".",)
    assert first.num_completions == 1


def test_answer_is_heads_and_continuations() -> None:
    attempt = draw_attempt(
        make_prompt(),
        1,
        10,
        BdhsConfig(),
    )
    first, second = attempt.requests
    groups = [group_of(first, " 0."), group_of(second, " 1.")]
    first_head, second_head = attempt.heads
    assert assemble(attempt, groups) == f"{first_head} 0.{second_head} 1."


def test_flip_changes_the_head_but_not_the_truth_before_the_next_sentence() -> None:
    prompt = make_prompt(reference="Yes. No, it is blue.")
    always = draw_attempt(
        prompt,
        1,
        10,
        BdhsConfig(flip_prob=1),
    )
    assert always.heads[0] == "No"
    assert always.heads[1].startswith(" Yes")
    assert always.requests[1].prefix.startswith("Yes. Yes")
    never = draw_attempt(
        prompt,
        1,
        10,
        BdhsConfig(flip_prob=0),
    )
    assert never.heads[0] == ""
    assert not never.heads[1].startswith(" Yes")


def test_last_attempt_is_unguided_and_taken_although_similar() -> None:
    config = BdhsConfig(max_attempts=3, rho=0.5)
    by_id, calls = outcomes([make_prompt()], similar, config)
    # Two sentences while guided, one whole answer at last.
    assert [len(requests) for requests in calls] == [2, 2, 1]
    (last,) = calls[2]
    assert (last.prefix, last.stop, last.max_tokens) == ("", (), 256)
    outcome = by_id["p"]
    pair = pair_of(outcome)
    assert pair.rejected.text == TRUTH.upper()
    assert pair.chosen.text == TRUTH
    assert outcome.attempts == 3
    assert outcome.similarity == pytest.approx(1.0)
    masks = {requests[0].visible_image_tokens for requests in calls}
    assert len(masks) == 3, "each attempt draws another mask"


def test_noise_attempts_keep_every_token_and_draw_new_noise() -> None:
    config = BdhsConfig(
        variant="noise",
        noise_step=400,
        rho=0.9,
        max_attempts=3,
    )
    noises = set()
    num_requests = []
    for number in (1, 2, 3):
        attempt = draw_attempt(
            make_prompt(),
            number,
            10,
            config,
        )
        assert attempt.num_visible == attempt.num_image_tokens == 10
        num_requests.append(len(attempt.requests))
        for request in attempt.requests:
            assert request.visible_image_tokens is None
            assert request.noise is not None
            assert request.noise.step == 400
            noises.add(request.noise)
    assert num_requests == [2, 2, 1]
    assert len(noises) == 3, "one noise per attempt"
    # The prompt id is part of the seed.
    other_prompt = draw_attempt(
        make_prompt("q"),
        1,
        10,
        config,
    )
    assert other_prompt.requests[0].noise not in noises

    first = draw_attempt(make_prompt(), 1, 10, config)
    assert first.heads == draw_attempt(make_prompt(), 1, 10, BdhsConfig()).heads
    by_id, _ = outcomes([make_prompt()], a_dog, config)
    assert pair_of(by_id["p"]).prompt == make_prompt()


def test_every_attempt_of_the_unguided_variant_is_a_whole_answer_from_a_masked_image() -> (
    None
):
    """Similar answers are refused until the last attempt, as in the other variants."""
    config = BdhsConfig(variant="unguided", rho=0.5, max_attempts=3)
    by_id, calls = outcomes([make_prompt()], similar, config)
    masks = set()
    for (request,) in calls:
        assert (request.prefix, request.stop, request.max_tokens) == ("", (), 256)
        assert request.noise is None
        assert request.visible_image_tokens is not None
        masks.add(request.visible_image_tokens)
    assert len(masks) == 3
    assert isinstance(by_id["p"].result, PreferencePair)
    assert by_id["p"].attempts == 3
    # Another answer is taken at once.
    by_id, calls = outcomes([make_prompt()], lambda request: "A dog runs.", config)
    assert by_id["p"].attempts == len(calls) == 1


def test_masks_and_cuts_are_redrawn_for_each_attempt() -> None:
    masks = set()
    seeds = set()
    for number in (1, 2, 3, 4):
        attempt = draw_attempt(
            make_prompt(),
            number,
            64,
            BdhsConfig(rho=0.5),
        )
        first = attempt.requests[0]
        masks.add(first.visible_image_tokens)
        seeds.add(first.seed)
    assert len(masks) == len(seeds) == 4


# Line breaks at the end do not make another answer.
def repeat_the_truth(request: GenerationRequest) -> str:
    return rest_of_sentence(request) if request.stop else TRUTH + "\n"


def drop_it(request: GenerationRequest) -> Dropped:
    return Dropped(request.id, "prompt_too_long")


@pytest.mark.parametrize(
    ("reason", "answer", "max_attempts", "attempts"),
    [
        ("identical", repeat_the_truth, 5, 5),
        ("cut_off", lambda request: " and on and on…", 5, 5),
        ("prompt_too_long", drop_it, 5, 1),
        ("empty", lambda request: "", 1, 1),
    ],
)
def test_drops_are_counted(
    reason: str,
    answer: Answer,
    max_attempts: int,
    attempts: int,
) -> None:
    config = BdhsConfig(max_attempts=max_attempts)
    by_id, _ = outcomes([make_prompt()], answer, config)
    dropped = drop_of(by_id["p"])
    assert (dropped.id, dropped.reason) == ("p", reason)
    assert by_id["p"].attempts == attempts


def test_prompts_that_cannot_be_used_are_refused_without_a_request() -> None:
    prompts = [
        make_prompt("a", None),
        make_prompt("b", " "),
        make_prompt("c", num_images=0),
        make_prompt("e", "A cat. " * 1_500_000),
    ]
    by_id, calls = outcomes(prompts, seeded, BdhsConfig())
    assert calls == []
    assert drop_of(by_id["a"]).reason == "no_reference"
    assert drop_of(by_id["b"]).reason == "no_reference"
    assert drop_of(by_id["c"]).reason == "image_count"
    assert drop_of(by_id["e"]).reason == "answer_too_long"
    # The reason must not repeat ten million characters.
    assert len(drop_of(by_id["e"]).detail) < 100


@pytest.mark.parametrize(
    ("yes_no", "used"),
    [
        ("both", {"caption", "nobody", "yes", "no"}),
        ("no", {"caption", "nobody", "no"}),
        ("neither", {"caption", "nobody"}),
    ],
)
def test_true_answers_to_yes_no_questions_can_be_left_out(
    yes_no: str, used: set[str]
) -> None:
    references = {
        "caption": "A cat sits here.",
        "nobody": "Nobody is there.",
        "yes": "Yes, there is a cat.",
        "no": " no, there is none.",
    }
    prompts = [make_prompt(id, reference) for id, reference in references.items()]
    config = BdhsConfig.model_validate({"yes_no": yes_no})
    by_id, calls = outcomes(prompts, a_dog, config)
    asked = {request.prompt.id for call in calls for request in call}
    assert asked == used
    for id in references.keys() - used:
        assert drop_of(by_id[id]).reason == "yes_no"


@pytest.mark.parametrize("reference", ["Red", "Yes.", "?", "  no", "猫"])
def test_an_answer_of_one_word_is_continued_from_nothing_or_flipped(
    reference: str,
) -> None:
    prompt = make_prompt(reference=reference)
    by_id, calls = outcomes([prompt], a_dog, BdhsConfig())
    (request,) = calls[0]
    # Cut before the only word, or flipped and kept.
    assert request.prefix.strip().lower() in ("", "yes", "no")
    assert isinstance(by_id["p"].result, PreferencePair)


def test_an_unreadable_image_drops_its_prompt_only() -> None:
    # As raised by the counter of image tokens, whose errors have a reason.
    class Unreadable(UserError):
        reason = "image_missing"

    def count(prompt: Prompt) -> int:
        if prompt.id == "a":
            raise Unreadable("gone")
        return 10

    by_id, _ = outcomes(
        [make_prompt("a"), make_prompt("b")],
        a_dog,
        BdhsConfig(),
        num_image_tokens=count,
    )
    assert list(by_id) == ["a", "b"]
    assert drop_of(by_id["a"]).reason == "image_missing"
    assert isinstance(by_id["b"].result, PreferencePair)


IDS = [f"p{number}" for number in range(12)]


@settings(deadline=None, max_examples=25)
@given(st.permutations(IDS), st.integers(1, 20), st.integers(0, 3))
def test_outcomes_do_not_depend_on_order_or_batch(
    ids: list[str],
    window: int,
    seed: int,
) -> None:
    config = BdhsConfig(seed=seed, rho=0.8, similarity_threshold=0.6)
    # Also what a resumed run relies on.
    expected, _ = outcomes(map(make_prompt, IDS), seeded, config)
    by_id, _ = outcomes(
        map(make_prompt, ids),
        seeded,
        config,
        window=window,
    )
    assert by_id == expected


def test_all_sentences_of_all_prompts_are_in_flight_together() -> None:
    prompts = [make_prompt(f"p{number}") for number in range(10)]
    _, calls = outcomes(
        prompts,
        a_dog,
        BdhsConfig(),
        window=8,
    )
    # Eight prompts of two sentences, then the other two.
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
    assert stats["num_prompts"] == 5
    assert stats["num_pairs"] == 3
    assert stats["another_attempt_frac"] == 0.5
    assert stats["mean_visible_tokens"] == 2.0
    assert stats["visible_frac"] == 0.2
    assert stats["similarity"]["0.5"] == 0.4
    assert stats["similarity"]["0.75"] == pytest.approx(0.65)
    assert summarise([], 2)["similarity"] == {}


def _note(similarity: float) -> dict[str, Any]:
    return {
        "dropped": None,
        "attempts": 1,
        "similarity": similarity,
        "num_visible": 1,
        "num_image_tokens": 1,
    }


def test_quantile_interpolates() -> None:
    """Of 1, 2 and 4, a quarter of the way is half way between the first two."""
    notes = [_note(4.0), _note(1.0), _note(2.0)]
    quantiles = summarise(notes, 1)["similarity"]
    assert quantiles["0.0"] == 1.0
    assert quantiles["0.25"] == 1.5
    assert quantiles["0.5"] == 2.0
    assert quantiles["1.0"] == 4.0

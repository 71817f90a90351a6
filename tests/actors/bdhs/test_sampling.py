"""BDHS against a scripted policy: masks, prefixes, attempts, seeds."""

from __future__ import annotations

import random
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.bdhs.sampling import (
    assemble,
    draw_attempt,
    draw_visible,
)
from common.config.bdhs import BdhsConfig
from common.records import (
    PreferencePair,
)
from tests.actors.bdhs.scripted_policy import (
    TRUTH,
    a_dog,
    group_of,
    make_prompt,
    outcomes,
    pair_of,
    seeded,
    similar,
)


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

"""vLLM against transformers in float32: same tokens, same log-probs, refusals that never cut."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.data.diffusion_noise import noise_image
from common.data.images import ImageStore, read
from common.protocols import Engine, GenerationRequest, ImageNoise
from common.records import Dropped, ImageRef, Prompt, RolloutGroup
from common.shapes.render import blank
from tests.actors.engines import EnginePool, Run, seeded_requests
from tests.actors.hf_policy import HfPolicy
from tests.tiny_models import TinyLlava, make_prompt, tiny_llava

pytestmark = pytest.mark.real
TOLERANCE = 1e-4
NUM_NEW = 12


@pytest.fixture(scope="module")
def hf(policy_path: Path) -> HfPolicy:
    return HfPolicy(policy_path, 256)


def greedy(prompt: Prompt, **changes: Any) -> GenerationRequest:
    settings = {
        "id": prompt.id,
        "prompt": prompt,
        "num_completions": 1,
        "temperature": 0.0,
        "max_tokens": NUM_NEW,
    }
    return GenerationRequest(**(settings | changes))


def test_greedy_tokens_and_logprobs_equal_transformers(
    engine: Engine,
    hf: HfPolicy,
    store: ImageStore,
    run: Run,
) -> None:
    requests = []
    for seed in range(6):
        # Pictures of several sizes.
        side = 40 + 12 * seed
        requests.append(greedy(make_prompt(store, seed, side=side)))
    groups = run(engine.generate(requests))
    for request, group in zip(requests, groups, strict=True):
        prompt = request.prompt
        encoded = hf.encoder.encode_prompt(prompt)
        assert group.prompt_token_ids == encoded.token_ids
        assert group.num_image_tokens == encoded.num_image_tokens
        assert group.num_image_tokens == TinyLlava().num_image_tokens
        (completion,) = group.completions
        assert completion.token_ids == hf.greedy(prompt, NUM_NEW)
        assert completion.text == hf.encoder.decode(completion.token_ids)
        logprobs = run(engine.token_logprobs(prompt, completion.token_ids))
        expected = hf.token_logprobs(prompt, completion.token_ids)
        assert logprobs == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("prefix", ["", "There is a"])
@pytest.mark.parametrize("visible", [(), (3,), (0, 5, 17, 63), None])
def test_prefix_and_visible_tokens_equal_transformers(
    engine: Engine,
    hf: HfPolicy,
    store: ImageStore,
    run: Run,
    prefix: str,
    visible: tuple[int, ...] | None,
) -> None:
    prompt = make_prompt(store, 20)
    request = greedy(
        prompt,
        prefix=prefix,
        visible_image_tokens=visible,
    )
    (group,) = run(engine.generate([request]))
    assert group.num_image_tokens == (64 if visible is None else len(visible))
    expected = hf.greedy(
        prompt,
        NUM_NEW,
        prefix,
        visible,
    )
    assert group.completions[0].token_ids == expected


def test_noise_is_laid_on_the_pixels_and_never_mistaken_for_the_clean_image(
    engine: Engine,
    store: ImageStore,
    run: Run,
) -> None:
    """Clean, noised and noised otherwise in one call, in two orders, since vLLM caches images by name.

    Each equals the same picture stored as an image of its own.
    """
    prompt = make_prompt(store, 22)
    noises = [ImageNoise(900, 1), ImageNoise(900, 2), ImageNoise(100, 1)]
    stored = [prompt]
    for noise in noises:
        picture = noise_image(
            read(prompt.images[0]),
            noise.step,
            noise.seed,
            side=64,
        )
        image = store.add(picture)
        stored.append(Prompt("stored", prompt.messages, (image,)))

    def sampled(
        prompt: Prompt,
        noise: ImageNoise | None = None,
    ) -> GenerationRequest:
        return GenerationRequest(
            "g",
            prompt,
            4,
            1.0,
            16,
            seed=3,
            noise=noise,
        )

    stored_requests = [sampled(clean) for clean in stored]
    groups = run(engine.generate(stored_requests))
    expected = [group.completions for group in groups]
    assert len(set(expected)) == 4
    requests = [sampled(prompt, noise) for noise in (None, *noises)]
    # Whichever comes first must not be taken for the others.
    for order in (1, -1):
        groups = run(engine.generate(requests[::order]))
        assert [group.completions for group in groups] == expected[::order]
        assert [group.prompt for group in groups] == [prompt] * 4


def test_a_blank_image_changes_the_logprobs(
    engine: Engine,
    store: ImageStore,
    run: Run,
) -> None:
    prompt = make_prompt(store, 21)
    blind = Prompt("blind", prompt.messages, (store.add(blank()),))
    response = (300, 301, 302)
    with_image = run(engine.token_logprobs(prompt, response))
    without_image = run(engine.token_logprobs(blind, response))
    assert np.abs(np.subtract(with_image, without_image)).max() > 0.01


def test_seeded_samples_do_not_depend_on_the_batch(
    engine: Engine,
    store: ImageStore,
    run: Run,
) -> None:
    requests = seeded_requests(
        store,
        range(30, 35),
        3,
        max_tokens=10,
    )
    together = run(engine.generate(requests))
    # In another order as well.
    alone = {}
    for request in reversed(requests):
        (group,) = run(engine.generate([request]))
        alone[request.id] = group.completions
    for group in together:
        assert group.completions == alone[group.id]
        answers = {completion.token_ids for completion in group.completions}
        assert len(answers) == 3


def test_what_cannot_run_is_dropped_beside_what_can(
    engine: Engine,
    store: ImageStore,
    run: Run,
    tmp_path: Path,
) -> None:
    good = make_prompt(store, 40)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    # The right hash: the file is what was asked for, but no picture.
    broken_hash = hashlib.sha256(broken.read_bytes()).hexdigest()
    corrupt = ImageRef(broken_hash, str(broken))
    changed = ImageRef("0" * 64, good.images[0].path)
    missing = ImageRef("0" * 64, str(tmp_path / "nowhere.png"))
    bad = {
        "image_missing": Prompt("a", good.messages, (missing,)),
        "image_changed": Prompt("b", good.messages, (changed,)),
        "image_corrupt": Prompt("c", good.messages, (corrupt,)),
        "image_count": Prompt("d", good.messages, good.images * 2),
        "prompt_too_long": make_prompt(store, 41, "What is in the image? " * 32),
    }
    requests = [greedy(prompt) for prompt in (good, *bad.values(), good)]
    first, *refused, last = run(engine.generate(requests))
    assert isinstance(first, RolloutGroup)
    assert first.completions == last.completions
    for (reason, prompt), dropped in zip(bad.items(), refused, strict=True):
        assert isinstance(dropped, Dropped)
        assert (dropped.id, dropped.reason) == (prompt.id, reason)

    # The image has tokens 0 to 63.
    request = greedy(good, visible_image_tokens=(0, 64))
    (outside,) = run(engine.generate([request]))
    assert isinstance(outside, Dropped)
    assert outside.reason == "image_tokens"


@pytest.mark.parametrize(
    "variant",
    [{}, {"visible_image_tokens": (1, 2)}, {"noise": ImageNoise(500, 1)}],
    ids=["whole", "shortened", "noise"],
)
def test_text_that_spells_the_image_token_is_dropped(
    engine: Engine,
    store: ImageStore,
    run: Run,
    variant: dict[str, Any],
) -> None:
    good = make_prompt(store, 44)
    bad = make_prompt(store, 44, "What does <image> mean?")
    requests = [
        greedy(good, prefix="An <image> of", **variant),
        greedy(bad, **variant),
        greedy(good),
    ]
    in_answer, in_question, group = run(engine.generate(requests))
    assert in_answer.reason == "response_media"
    assert in_question.reason == "image_count"
    assert isinstance(group, RolloutGroup)


def test_the_answer_gets_the_room_that_is_left_and_no_more(
    engine: Engine,
    store: ImageStore,
    run: Run,
) -> None:
    prompt = make_prompt(store, 42, "What do you see? " * 24)
    request = greedy(prompt, max_tokens=500)
    (group,) = run(engine.generate([request]))
    (completion,) = group.completions
    num_prompt_tokens = len(group.prompt_token_ids)
    assert num_prompt_tokens + len(completion.token_ids) == 256
    assert completion.finish_reason == "length"
    # A sequence of full length can be scored as well.
    logprobs = run(engine.token_logprobs(prompt, completion.token_ids))
    assert len(logprobs) == 256 - num_prompt_tokens


def test_stop_strings_end_the_answer_and_stay(
    engine: Engine,
    hf: HfPolicy,
    store: ImageStore,
    run: Run,
) -> None:
    prompt = make_prompt(store, 43)
    unstopped = hf.encoder.decode(hf.greedy(prompt, NUM_NEW))
    middle = len(unstopped) // 2
    stop = unstopped[middle : middle + 2]
    request = greedy(prompt, stop=(stop,))
    (group,) = run(engine.generate([request]))
    (completion,) = group.completions
    end = unstopped.index(stop) + len(stop)
    # The stop string is part of the answer.
    assert completion.text == unstopped[:end]
    assert completion.finish_reason == "stop"


def test_both_engines_sample_the_same(
    engines: EnginePool,
    store: ImageStore,
    run: Run,
) -> None:
    requests = seeded_requests(
        store,
        range(50, 54),
        2,
        max_tokens=8,
    )
    # Same weights, seeds and kernels; only the scheduling differs.
    stepped = run(engines.get(tiny_llava(), "stepped").generate(requests))
    concurrent = run(engines.get(tiny_llava(), "async").generate(requests))
    for ours, theirs in zip(stepped, concurrent, strict=True):
        for left, right in zip(ours.completions, theirs.completions, strict=True):
            assert left.token_ids == right.token_ids


def test_media_tokens_are_banned_where_the_policy_would_sample_them(
    engines: EnginePool,
    store: ImageStore,
    run: Run,
) -> None:
    path = tiny_llava(TinyLlava(favours_image=True))
    engine = engines.get(path, "stepped")
    reference = HfPolicy(path, 256)
    image_token = reference.encoder.image_token_id
    prompts = [make_prompt(store, seed) for seed in range(60, 68)]
    unbanned = []
    for prompt in prompts:
        logits = reference.logits(prompt, ())[-1]
        unbanned.append(int(logits.argmax()))
    assert image_token in unbanned, "or this test sees nothing"
    for temperature in (0.0, 1.0):
        requests = [
            greedy(prompt, temperature=temperature, seed=1) for prompt in prompts
        ]
        for group in run(engine.generate(requests)):
            assert isinstance(group, RolloutGroup)
            assert image_token not in group.completions[0].token_ids


def test_a_flood_of_seeded_requests_is_prefilled_whole(
    engine: Engine,
    store: ImageStore,
    run: Run,
) -> None:
    """vLLM on CPU crashes when a seeded request is prefilled in parts; 20,000 prompt tokens invite it to."""
    requests = seeded_requests(
        store,
        range(100, 165),
        4,
        max_tokens=2,
    )
    for group in run(engine.generate(requests)):
        assert isinstance(group, RolloutGroup)


def test_requests_to_an_engine_that_sleeps_wait_until_it_wakes(
    engine: Engine, store: ImageStore, run: Run
) -> None:
    requests = [GenerationRequest("s", make_prompt(store, 5), 2, 1.0, 6, seed=9)]

    async def scenario() -> None:
        before = await engine.generate(requests)
        await engine.sleep(2)
        waiting = asyncio.create_task(engine.generate(requests))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await engine.wake()
        # A CPU engine keeps its weights whatever the level is.
        assert await waiting == before

    run(scenario())

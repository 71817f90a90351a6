"""vLLM against transformers in float32: same tokens, same log-probs, refusals that never cut."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.distortion import noise_image
from common.images import ImageStore, read
from common.protocols import Engine, GenerationRequest, ImageNoise
from common.records import Dropped, ImageRef, Prompt, RolloutGroup
from common.shapes.render import blank
from tests.actors.hf_policy import HfPolicy
from tests.tiny_models import TinyLlava, make_prompt

pytestmark = pytest.mark.real
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def hf(policy_path: Path) -> HfPolicy:
    return HfPolicy(policy_path, 256)


@pytest.fixture(autouse=True)
def start_weights(start_engine: Callable[..., Engine], hf: HfPolicy, run: Any) -> None:
    """Other files push weights into the shared engines, and a test may ask for either."""
    for kind in ("stepped", "async"):
        engine = start_engine(TinyLlava(), kind)
        if engine.weight_version:
            run(engine.load_weights(*hf.publish(engine.weight_version + 1)))


def greedy(prompt: Prompt, **changes: Any) -> GenerationRequest:
    return GenerationRequest(**{"id": prompt.id, "prompt": prompt, "num_completions": 1, "temperature": 0.0,
                                "max_tokens": 12, **changes})  # fmt: skip


def test_greedy_tokens_and_logprobs_equal_transformers(
    engine: Engine, hf: HfPolicy, store: ImageStore, run: Any
) -> None:
    prompts = [make_prompt(store, seed, side=40 + 12 * seed) for seed in range(6)]
    for prompt, group in zip(
        prompts,
        run(engine.generate([greedy(prompt) for prompt in prompts])),
        strict=True,
    ):
        encoded = hf.encoder.encode_prompt(prompt)
        (completion,) = group.completions
        assert group.prompt_token_ids == encoded.token_ids
        assert (
            group.num_image_tokens
            == encoded.num_image_tokens
            == TinyLlava().num_image_tokens
        )
        assert completion.token_ids == hf.greedy(prompt, 12)
        assert completion.text == hf.encoder.decode(completion.token_ids)
        found = run(engine.token_logprobs(prompt, completion.token_ids))
        assert found == pytest.approx(
            hf.token_logprobs(prompt, completion.token_ids), abs=TOLERANCE
        )


def test_prefix_and_visible_tokens_equal_transformers(
    engine: Engine, hf: HfPolicy, store: ImageStore, run: Any
) -> None:
    prompt = make_prompt(store, 20)
    for prefix in ("", "There is a"):
        for visible in ((), (3,), (0, 5, 17, 63), None):
            request = greedy(prompt, prefix=prefix, visible_image_tokens=visible)
            (group,) = run(engine.generate([request]))
            assert group.num_image_tokens == (64 if visible is None else len(visible))
            assert group.completions[0].token_ids == hf.greedy(
                prompt, 12, prefix, visible
            )


def test_noise_is_laid_on_the_pixels_and_never_mistaken_for_the_clean_image(
    engine: Engine, store: ImageStore, run: Any
) -> None:
    """Clean, noised and noised otherwise in one call, in two orders, since vLLM caches images by name; each equals the
    same picture stored as an image of its own."""
    prompt = make_prompt(store, 22)
    noises = [None, ImageNoise(900, 1), ImageNoise(900, 2), ImageNoise(100, 1)]
    stored = [prompt]
    for noise in noises[1:]:
        assert noise is not None
        picture = noise_image(read(prompt.images[0]), noise.step, noise.seed, side=64)
        stored.append(Prompt("stored", prompt.messages, (store.add(picture),)))

    def sampled(prompt: Prompt, noise: ImageNoise | None = None) -> GenerationRequest:
        return GenerationRequest("g", prompt, 4, 1.0, 16, seed=3, noise=noise)

    expected = [
        group.completions
        for group in run(engine.generate([sampled(one) for one in stored]))
    ]
    assert len(set(expected)) == 4
    for step in (1, -1):
        groups = run(
            engine.generate([sampled(prompt, noise) for noise in noises[::step]])
        )
        assert [group.completions for group in groups] == expected[::step]
        assert all(group.prompt == prompt for group in groups)


def test_a_blank_image_changes_the_logprobs(
    engine: Engine, store: ImageStore, run: Any
) -> None:
    prompt = make_prompt(store, 21)
    blind = Prompt("blind", prompt.messages, (store.add(blank()),))
    seen, unseen = (
        run(engine.token_logprobs(one, (300, 301, 302))) for one in (prompt, blind)
    )
    assert max(abs(a - b) for a, b in zip(seen, unseen, strict=True)) > 0.01


def test_seeded_samples_do_not_depend_on_the_batch(
    engine: Engine, store: ImageStore, run: Any
) -> None:
    requests = [
        GenerationRequest(f"g{seed}", make_prompt(store, seed), 3, 1.0, 10, seed=seed)
        for seed in range(30, 35)
    ]
    together = run(engine.generate(requests))
    alone = [run(engine.generate([request]))[0] for request in reversed(requests)][::-1]
    assert [group.completions for group in together] == [
        group.completions for group in alone
    ]
    assert all(
        len({one.token_ids for one in group.completions}) == 3 for group in together
    )


def test_what_cannot_run_is_dropped_beside_what_can(
    engine: Engine, store: ImageStore, run: Any, tmp_path: Path
) -> None:
    good = make_prompt(store, 40)
    (broken := tmp_path / "broken.png").write_bytes(b"no picture")
    changed = ImageRef("0" * 64, good.images[0].path)
    missing = ImageRef("0" * 64, str(tmp_path / "nowhere.png"))
    corrupt = ImageRef(hashlib.sha256(broken.read_bytes()).hexdigest(), str(broken))
    bad = {
        "image_missing": Prompt("a", good.messages, (missing,)),
        "image_changed": Prompt("b", good.messages, (changed,)),
        "image_corrupt": Prompt("c", good.messages, (corrupt,)),
        "image_count": Prompt("d", good.messages, (*good.images, *good.images)),
        "prompt_too_long": make_prompt(store, 41, "What is in the image? " * 32),
    }
    requests = [greedy(prompt) for prompt in (good, *bad.values(), good)]
    first, *refused, last = run(engine.generate(requests))
    assert [(one.id, one.reason) for one in refused if isinstance(one, Dropped)] == [
        (prompt.id, reason) for reason, prompt in bad.items()
    ]
    assert isinstance(first, RolloutGroup) and first.completions == last.completions
    (outside,) = run(engine.generate([greedy(good, visible_image_tokens=(0, 64))]))
    assert isinstance(outside, Dropped) and outside.reason == "image_tokens"


def test_text_that_spells_the_image_token_is_dropped(
    engine: Engine, store: ImageStore, run: Any
) -> None:
    good = make_prompt(store, 44)
    ways: list[dict[str, Any]] = [
        {},
        {"visible_image_tokens": (1, 2)},
        {"noise": ImageNoise(500, 1)},
    ]
    bad = make_prompt(store, 44, "What does <image> mean?")
    requests = [greedy(good, prefix="An <image> of", **way) for way in ways] + [
        greedy(bad, **way) for way in ways
    ]
    *dropped, last = run(engine.generate([*requests, greedy(good)]))
    assert [one.reason for one in dropped] == ["response_media"] * 3 + [
        "image_count"
    ] * 3
    assert isinstance(last, RolloutGroup)


def test_the_answer_gets_the_room_that_is_left_and_no_more(
    engine: Engine, store: ImageStore, run: Any
) -> None:
    prompt = make_prompt(store, 42, "What do you see? " * 24)
    (group,) = run(engine.generate([greedy(prompt, max_tokens=500)]))
    num_tokens = len(group.prompt_token_ids) + len(group.completions[0].token_ids)
    assert num_tokens == 256 and group.completions[0].finish_reason == "length"
    assert len(
        run(engine.token_logprobs(prompt, group.completions[0].token_ids))
    ) == 256 - len(group.prompt_token_ids)


def test_stop_strings_end_the_answer_and_stay(
    engine: Engine, hf: HfPolicy, store: ImageStore, run: Any
) -> None:
    prompt = make_prompt(store, 43)
    free = hf.encoder.decode(hf.greedy(prompt, 12))
    stop = free[len(free) // 2 : len(free) // 2 + 2]
    (group,) = run(engine.generate([greedy(prompt, stop=(stop,))]))
    assert group.completions[0].text == free[: free.index(stop) + len(stop)]
    assert group.completions[0].finish_reason == "stop"


def test_both_engines_sample_the_same(
    start_engine: Callable[..., Engine], store: ImageStore, run: Any
) -> None:
    requests = [
        GenerationRequest(f"g{n}", make_prompt(store, n), 2, 1.0, 8, seed=n)
        for n in range(50, 54)
    ]
    groups = [
        run(start_engine(TinyLlava(), kind).generate(requests))
        for kind in ("stepped", "async")
    ]
    tokens = [
        [[one.token_ids for one in group.completions] for group in side]
        for side in groups
    ]
    assert tokens[0] == tokens[1]


def test_media_tokens_are_banned_where_the_policy_would_sample_them(
    start_engine: Callable[..., Engine], store: ImageStore, run: Any
) -> None:
    recipe = TinyLlava(favours_image=True)
    biased, reference = start_engine(recipe, "stepped"), HfPolicy(recipe.directory, 256)
    prompts = [make_prompt(store, seed) for seed in range(60, 68)]
    image_token = reference.encoder.image_token_id
    wanted = [
        int(reference._logits(prompt, ())[-1].argmax()) == image_token
        for prompt in prompts
    ]
    assert any(wanted)
    for temperature in (0.0, 1.0):
        for group in run(
            biased.generate(
                [greedy(prompt, temperature=temperature, seed=1) for prompt in prompts]
            )
        ):
            assert (
                isinstance(group, RolloutGroup)
                and image_token not in group.completions[0].token_ids
            )


def test_a_flood_of_seeded_requests_is_prefilled_whole(
    engine: Engine, store: ImageStore, run: Any
) -> None:
    """vLLM on CPU crashes when a seeded request is prefilled in parts; 20,000 prompt tokens invite it to."""
    requests = [
        GenerationRequest(f"g{n}", make_prompt(store, n), 4, 1.0, 2, seed=n)
        for n in range(100, 165)
    ]
    assert all(
        isinstance(group, RolloutGroup) for group in run(engine.generate(requests))
    )

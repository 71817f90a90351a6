"""A push changes what the engine computes, everywhere, at once, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from common.images import ImageStore
from common.protocols import Engine, GenerationRequest
from common.weights import checksum
from tests.actors.hf_policy import HfPolicy
from tests.tiny_models import TinyLlava, make_prompt, tiny_llava

pytestmark = pytest.mark.real
TOLERANCE = 1e-4


def requests_of(store: ImageStore) -> list[GenerationRequest]:
    """Whole and shortened images, all of them seen before by caches that must not survive a push."""
    prompt = make_prompt(store, 70)
    base = GenerationRequest("whole", prompt, 1, 0.0, 10)
    return [
        base,
        replace(base, id="short", visible_image_tokens=(1, 8, 40)),
        replace(base, id="prefix", prefix="There"),
    ]


def test_after_a_push_tokens_and_logprobs_are_those_of_the_new_weights(
    engine: Engine, policy_path: Path, store: ImageStore, run: Any
) -> None:
    hf, requests, prompt = HfPolicy(policy_path, 256), requests_of(store), make_prompt(store, 70)
    response = (300, 301, 302, 303)
    previous = None
    for seed in range(3):
        run(engine.generate(requests))  # fills the caches under the weights that are about to go
        version = engine.weight_version + 1
        report = run(engine.load_weights(*hf.perturb(seed).publish(version, prompt)))
        assert report.version == version == engine.weight_version
        assert report.probe_error is not None and report.probe_error < TOLERANCE
        found = run(engine.token_logprobs(prompt, response))
        assert found == pytest.approx(hf.token_logprobs(prompt, response), abs=TOLERANCE)
        if previous is not None:
            assert max(abs(a - b) for a, b in zip(found, previous, strict=True)) > 0.1
        previous = found
        whole, short, prefix = (group.completions[0] for group in run(engine.generate(requests)))
        assert whole.token_ids == hf.greedy(prompt, 10)
        assert short.token_ids == hf.greedy(prompt, 10, visible=(1, 8, 40))
        assert prefix.token_ids == hf.greedy(prompt, 10, "There")
        assert whole.min_weight_version == whole.max_weight_version == version


def test_running_answers_go_on_under_the_new_weights(
    engine: Engine, policy_path: Path, store: ImageStore, run: Any
) -> None:
    """The part before the swap is the old policy's greedy answer, the part after it the new one's given that part."""
    old, new = HfPolicy(policy_path, 256), HfPolicy(policy_path, 256).perturb(7)
    prompts = [make_prompt(store, seed) for seed in range(71, 75)]
    requests = [GenerationRequest(prompt.id, prompt, 1, 0.0, 150) for prompt in prompts]
    short = GenerationRequest("short", make_prompt(store, 75), 1, 0.0, 8)

    async def swap_in_flight(before: int, after: int) -> Any:
        """Once a short answer that came last is there, the long ones have about as many tokens of theirs."""
        await engine.load_weights(*old.publish(before))
        publication = new.publish(after, prompts[0])
        *long, last = [asyncio.create_task(engine.generate([request])) for request in (*requests, short)]
        await last
        await engine.load_weights(*publication)
        return [group for (group,) in await asyncio.gather(*long)]

    mixed = 0
    for _ in range(5):  # on a busy machine the long answers, too, can end before the new weights are there
        before, after = engine.weight_version + 1, engine.weight_version + 2
        for prompt, group in zip(prompts, run(swap_in_flight(before, after)), strict=True):
            (answer,) = group.completions
            assert answer.min_weight_version == before, "begun before the short one, so under the old weights"
            if (answer.min_weight_version, answer.max_weight_version) == (before, after):
                mixed += 1
                tail = new._logits(prompt, answer.token_ids)[:-1].argmax(-1)[-3:].tolist()
                assert tail == list(answer.token_ids[-3:])
        if mixed:
            break
    assert mixed, "no answer was in flight during the swap"


def test_a_push_that_is_not_the_manifests_or_the_models_is_refused_whole(
    engine: Engine, policy_path: Path, store: ImageStore, run: Any
) -> None:
    hf, requests, version = HfPolicy(policy_path, 256), requests_of(store), engine.weight_version
    before = [group.completions for group in run(engine.generate(requests))]
    manifest, arrays = hf.perturb(11).publish(version + 1)
    name = "language_model.model.layers.0.self_attn.q_proj.weight"

    changed = arrays | {name: arrays[name] + 1}
    without = {key: value for key, value in arrays.items() if key != name}
    renamed = without | {"q_proj": arrays[name]}
    reshaped = arrays | {name: np.zeros((2, 2), np.float32)}
    for broken, words in ((changed, "checksum"), (without, "without"), (renamed, "without"), (reshaped, "shape")):
        digest = manifest.checksum if words == "checksum" else checksum(broken)
        with pytest.raises(UserError, match=words):
            run(engine.load_weights(replace(manifest, checksum=digest), broken))
    assert engine.weight_version == version
    assert [group.completions for group in run(engine.generate(requests))] == before


def test_a_probe_that_disagrees_is_an_error_with_figures(
    engine: Engine, policy_path: Path, store: ImageStore, run: Any
) -> None:
    version = engine.weight_version + 1
    publication = HfPolicy(policy_path, 256).publish(version, make_prompt(store, 80), probe_shift=0.5)
    with pytest.raises(RuntimeError, match=rf"weights {version}: .*0\.001.*0\.5"):
        run(engine.load_weights(*publication))


def test_nothing_is_left_in_shared_memory() -> None:
    assert not list(Path("/dev/shm").glob("sightline-*"))


def test_a_tied_lm_head_is_pushed_too(start_engine: Callable[..., Engine], store: ImageStore, run: Any) -> None:
    recipe = TinyLlava(tied=True)
    engine, hf, prompt = start_engine(recipe, "stepped"), HfPolicy(tiny_llava(recipe), 256), make_prompt(store, 81)
    manifest, arrays = hf.perturb(3).publish(1, prompt)
    report = run(engine.load_weights(manifest, arrays))
    assert report.probe_error is not None and report.probe_error < TOLERANCE
    assert "language_model.lm_head.weight" in arrays

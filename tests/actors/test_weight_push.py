"""A push changes what the engine computes, everywhere, at once, or not at all."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import numpy as np
import pytest

import actors.shared_memory
from common.errors import UserError
from common.images import ImageStore
from common.protocols import Engine, GenerationRequest
from common.weights import checksum
from tests.actors.hf_policy import HfPolicy
from tests.actors.in_flight import check_answers_in_flight
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
    hf, requests, prompt = (
        HfPolicy(policy_path, 256),
        requests_of(store),
        make_prompt(store, 70),
    )
    response = (300, 301, 302, 303)
    previous = None
    for seed in range(3):
        run(
            engine.generate(requests)
        )  # fills the caches under the weights that are about to go
        version = engine.weight_version + 1
        report = run(engine.load_weights(*hf.perturb(seed).publish(version, prompt)))
        assert report.version == version == engine.weight_version
        assert report.probe_error is not None and report.probe_error < TOLERANCE
        found = run(engine.token_logprobs(prompt, response))
        assert found == pytest.approx(
            hf.token_logprobs(prompt, response), abs=TOLERANCE
        )
        if previous is not None:
            assert max(abs(a - b) for a, b in zip(found, previous, strict=True)) > 0.1
        previous = found
        whole, short, prefix = (
            group.completions[0] for group in run(engine.generate(requests))
        )
        assert whole.token_ids == hf.greedy(prompt, 10)
        assert short.token_ids == hf.greedy(prompt, 10, visible=(1, 8, 40))
        assert prefix.token_ids == hf.greedy(prompt, 10, "There")
        assert whole.min_weight_version == whole.max_weight_version == version


def test_running_answers_go_on_under_the_new_weights(
    engine: Engine, policy_path: Path, store: ImageStore, run: Any
) -> None:
    old, new = HfPolicy(policy_path, 256), HfPolicy(policy_path, 256).perturb(7)
    check_answers_in_flight(engine, store, run, (old, new), (old.publish, new.publish))


def test_a_push_that_is_not_the_manifests_or_the_models_is_refused_whole(
    engine: Engine, policy_path: Path, store: ImageStore, run: Any
) -> None:
    hf, requests, version = (
        HfPolicy(policy_path, 256),
        requests_of(store),
        engine.weight_version,
    )
    before = [group.completions for group in run(engine.generate(requests))]
    manifest, arrays = hf.perturb(11).publish(version + 1)
    name = "language_model.model.layers.0.self_attn.q_proj.weight"

    changed = arrays | {name: arrays[name] + 1}
    without = {key: value for key, value in arrays.items() if key != name}
    renamed = without | {"q_proj": arrays[name]}
    reshaped = arrays | {name: np.zeros((2, 2), np.float32)}
    for broken, words in (
        (changed, "checksum"),
        (without, "without"),
        (renamed, "without"),
        (reshaped, "shape"),
    ):
        digest = manifest.checksum if words == "checksum" else checksum(broken)
        with pytest.raises(UserError, match=words):
            run(engine.load_weights(replace(manifest, checksum=digest), broken))
    assert engine.weight_version == version
    assert [group.completions for group in run(engine.generate(requests))] == before


def test_a_probe_that_disagrees_is_an_error_with_figures(
    engine: Engine, policy_path: Path, store: ImageStore, run: Any
) -> None:
    version = engine.weight_version + 1
    publication = HfPolicy(policy_path, 256).publish(
        version, make_prompt(store, 80), probe_shift=0.5
    )
    with pytest.raises(RuntimeError, match=rf"weights {version}: .*0\.001.*0\.5"):
        run(engine.load_weights(*publication))


def test_an_engine_that_echoes_another_version_is_an_error(
    engine: Engine, policy_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = engine.weight_version
    monkeypatch.setattr(engine, "_swap", AsyncMock(return_value=str(version)))
    with pytest.raises(
        RuntimeError,
        match=f"weights {version + 1}: expected the engine to echo .*, got {version};",
    ):
        run(engine.load_weights(*HfPolicy(policy_path, 256).publish(version + 1)))
    assert engine.weight_version == version


def test_nothing_is_left_in_shared_memory(
    engine: Engine,
    policy_path: Path,
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(actors.shared_memory, "SHARED_MEMORY", tmp_path)
    swap, paths = engine._swap, list[Path]()  # type: ignore[attr-defined]

    async def watched(path: str, version: str) -> Any:
        paths.append(Path(path))
        assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
        return await swap(path, version)

    monkeypatch.setattr(engine, "_swap", watched)
    run(
        engine.load_weights(
            *HfPolicy(policy_path, 256).publish(engine.weight_version + 1)
        )
    )
    assert [path.is_relative_to(tmp_path) for path in paths] == [True]
    assert not list(tmp_path.iterdir())


def test_a_tied_lm_head_is_pushed_too(
    start_engine: Callable[..., Engine], store: ImageStore, run: Any
) -> None:
    recipe = TinyLlava(tied=True)
    engine, hf, prompt = (
        start_engine(recipe, "stepped"),
        HfPolicy(tiny_llava(recipe), 256),
        make_prompt(store, 81),
    )
    manifest, arrays = hf.perturb(3).publish(1, prompt)
    report = run(engine.load_weights(manifest, arrays))
    assert report.probe_error is not None and report.probe_error < TOLERANCE
    assert "language_model.lm_head.weight" in arrays

"""A push changes what the engine computes, everywhere, at once, or not at all."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import numpy as np
import pytest

import actors.engine.receiving
from actors.weights.sender import shared_weights
from common.data.images import ImageStore
from common.errors import UserError
from common.machine import held_files
from common.protocols import Engine, GenerationRequest
from common.weights import checksum
from tests.actors.engines import EnginePool, Run
from tests.actors.hf_policy import HfPolicy
from tests.actors.in_flight import check_answers_in_flight
from tests.tiny_models import TinyLlava, make_prompt, tiny_llava

pytestmark = pytest.mark.real
TOLERANCE = 1e-4


@pytest.fixture
def hf(policy_path: Path) -> HfPolicy:
    """The start policy, for the test to change."""
    return HfPolicy(policy_path, 256)


def make_requests(store: ImageStore) -> list[GenerationRequest]:
    """Whole and shortened images, all of them seen before by caches that must not survive a push."""
    whole = GenerationRequest(
        "whole",
        make_prompt(store, 70),
        1,
        0.0,
        10,
    )
    return [
        whole,
        replace(whole, id="short", visible_image_tokens=(1, 8, 40)),
        replace(whole, id="prefix", prefix="There"),
    ]


def test_after_a_push_tokens_and_logprobs_are_those_of_the_new_weights(
    engine: Engine,
    hf: HfPolicy,
    store: ImageStore,
    run: Run,
) -> None:
    requests = make_requests(store)
    prompt = make_prompt(store, 70)
    response = (300, 301, 302, 303)
    previous: Any = None
    for seed in range(3):
        # Fills the caches under the weights that are about to go.
        run(engine.generate(requests))
        version = engine.weight_version + 1
        hf.perturb(seed)
        publication = hf.publish(version, prompt)
        report = run(engine.load_weights(*publication))
        assert report.version == version == engine.weight_version
        assert report.probe_error is not None
        assert report.probe_error < TOLERANCE

        logprobs = run(engine.token_logprobs(prompt, response))
        expected = hf.token_logprobs(prompt, response)
        assert logprobs == pytest.approx(expected, abs=TOLERANCE)
        if previous is not None:
            # Or the test would not see stale weights.
            difference = np.subtract(logprobs, previous)
            assert np.abs(difference).max() > 0.1
        previous = logprobs

        groups = run(engine.generate(requests))
        whole, short, prefix = (group.completions[0] for group in groups)
        assert whole.token_ids == hf.greedy(prompt, 10)
        assert short.token_ids == hf.greedy(prompt, 10, visible=(1, 8, 40))
        assert prefix.token_ids == hf.greedy(prompt, 10, "There")
        assert whole.min_weight_version == version
        assert whole.max_weight_version == version


def test_running_answers_go_on_under_the_new_weights(
    engine: Engine,
    hf: HfPolicy,
    policy_path: Path,
    store: ImageStore,
    run: Run,
) -> None:
    new = HfPolicy(policy_path, 256).perturb(7)
    check_answers_in_flight(
        engine,
        store,
        run,
        policies=(hf, new),
        publish=(hf.publish, new.publish),
    )


def test_a_push_that_is_not_the_manifests_or_the_models_is_refused_whole(
    engine: Engine,
    hf: HfPolicy,
    store: ImageStore,
    run: Run,
) -> None:
    requests = make_requests(store)
    version = engine.weight_version
    before = [group.completions for group in run(engine.generate(requests))]
    manifest, arrays = hf.perturb(11).publish(version + 1)
    name = "language_model.model.layers.0.self_attn.q_proj.weight"

    # One value of one tensor.
    changed = arrays | {name: arrays[name] + 1}
    with pytest.raises(UserError, match="checksum"):
        run(engine.load_weights(manifest, changed))

    without = dict(arrays)
    del without[name]
    # A missing name is reported before an unknown one.
    renamed = without | {"q_proj": arrays[name]}
    small = np.zeros((2, 2), np.float32)
    reshaped = arrays | {name: small}
    wrong_pushes = ((without, "without"), (renamed, "without"), (reshaped, "shape"))
    for tensors, words in wrong_pushes:
        described = replace(manifest, checksum=checksum(tensors))
        with pytest.raises(UserError, match=words):
            run(engine.load_weights(described, tensors))

    assert engine.weight_version == version
    after = [group.completions for group in run(engine.generate(requests))]
    assert after == before


def test_a_probe_that_disagrees_is_an_error_with_figures(
    engine: Engine,
    hf: HfPolicy,
    store: ImageStore,
    run: Run,
) -> None:
    version = engine.weight_version + 1
    wrong = hf.publish(
        version,
        make_prompt(store, 80),
        probe_shift=0.5,
    )
    with pytest.raises(RuntimeError, match=rf"weights {version}: .*0\.01.*0\.5"):
        run(engine.load_weights(*wrong))


def test_an_engine_that_echoes_another_version_is_an_error(
    engine: Engine,
    hf: HfPolicy,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = engine.weight_version
    # An engine that did not take the new weights reports the old version.
    monkeypatch.setattr(engine, "_swap", AsyncMock(return_value=str(version)))
    message = f"weights {version + 1}: expected the engine to echo .*, got {version};"
    with pytest.raises(RuntimeError, match=message):
        run(engine.load_weights(*hf.publish(version + 1)))
    assert engine.weight_version == version


def test_nothing_is_left_in_shared_memory(
    engine: Engine,
    hf: HfPolicy,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(held_files, "SHARED_MEMORY", tmp_path)
    paths = []

    @contextmanager
    def watched(*push: Any) -> Iterator[Path]:
        with shared_weights(*push) as path:
            paths.append(path)
            # Weights are readable by their owner only.
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
            yield path

    monkeypatch.setattr(actors.engine.receiving, "shared_weights", watched)
    publication = hf.publish(engine.weight_version + 1)
    run(engine.load_weights(*publication))
    (path,) = paths
    assert path.is_relative_to(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_tied_lm_head_is_pushed_too(
    engines: EnginePool,
    store: ImageStore,
    run: Run,
) -> None:
    path = tiny_llava(TinyLlava(tied=True))
    engine = engines.get(path, "stepped")
    hf = HfPolicy(path, 256).perturb(3)
    version = engine.weight_version + 1
    manifest, arrays = hf.publish(version, make_prompt(store, 81))
    assert "lm_head.weight" in arrays
    report = run(engine.load_weights(manifest, arrays))
    assert report.probe_error is not None
    assert report.probe_error < TOLERANCE


def test_an_engine_takes_a_push_after_it_slept(
    engine: Engine, hf: HfPolicy, store: ImageStore, run: Run
) -> None:
    """What it has seen before it slept is computed again: the probe asks for its first picture."""
    run(engine.generate(make_requests(store)))
    run(engine.sleep(2))
    run(engine.wake())
    hf.perturb(5)
    prompt = make_prompt(store, 70)
    publication = hf.publish(engine.weight_version + 1, prompt)
    report = run(engine.load_weights(*publication))
    assert report.probe_error is not None
    assert report.probe_error < TOLERANCE
    (group, *_) = run(engine.generate(make_requests(store)))
    (completion,) = group.completions
    assert completion.token_ids == hf.greedy(prompt, 10)

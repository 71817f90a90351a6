"""Adapters alone into running engines: fewer bytes than merged weights, the same policy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from actors.vllm_api import MaxLoRARanks
from actors.weights.adapter_push import (
    adapter_shapes,
    shared_adapter,
    zero_adapter,
)
from actors.weights.push_check import adapter_alone
from common.checkpoint.layout import empty_model
from common.config import Lora
from common.data.images import ImageStore
from common.errors import UserError
from common.protocols import GenerationRequest
from common.push.adapter import MAX_RANK
from common.records import WeightManifest
from common.weights import checksum
from learner.learner import Learner
from tests.actors.engines import KINDS, EnginePool, Run
from tests.actors.hf_policy import HfPolicy
from tests.actors.in_flight import check_answers_in_flight
from tests.learner.helpers import LORA, make_pairs, run_config, written
from tests.probes import one_answer
from tests.tiny_families import tiny_llava_next, tiny_qwen
from tests.tiny_models import make_prompt, tiny_llava

TUNING = Lora.model_validate({**LORA, "push": "adapter"})
TOLERANCE = 1e-4


def learner_of(**tuning: Any) -> Learner:
    config = run_config(
        tuning={**LORA, **tuning},
        optimizer={"lr": 1e-2, "warmup_steps": 0},
    )
    learner = Learner(config)
    learner.start()
    return learner


def test_the_highest_rank_is_vllms() -> None:
    assert max(get_args(MaxLoRARanks)) == MAX_RANK


@pytest.mark.parametrize("model", [tiny_llava, tiny_llava_next, tiny_qwen])
def test_engine_and_learner_mean_the_same_layers(model: Callable[[], Path]) -> None:
    """Names and shapes that the engine expects are those that the learner sends, in each family."""
    path = model()
    learner = Learner(run_config(tuning=TUNING.model_dump(), model=path))
    learner.start()
    manifest, arrays = learner.publish(1)
    assert manifest is not None
    assert manifest.change_norm == 0
    expected = adapter_shapes(empty_model(path), TUNING)
    sent = {name: array.shape for name, array in arrays.items()}
    assert sent == expected
    # Two matrices in seven projections of two layers.
    assert len(arrays) == 2 * 2 * 7
    adapter_alone(expected).check(manifest, arrays)


def test_an_adapter_that_is_not_the_manifests_or_the_models_is_refused() -> None:
    model = empty_model(tiny_llava())
    expected = adapter_alone(adapter_shapes(model, TUNING))
    manifest, arrays = zero_adapter(model, TUNING)
    name = next(iter(arrays))
    without = dict(arrays)
    del without[name]
    wrong_pushes = {
        "without": without,
        "unknown": {**arrays, "base_model.model.lm_head.lora_A.weight": arrays[name]},
        "shape": {**arrays, name: np.zeros((1, 1), np.float32)},
    }
    for words, tensors in wrong_pushes.items():
        with pytest.raises(UserError, match=words):
            expected.check(manifest, tensors)
    expected.check(manifest, arrays)
    arrays[name][0, 0] = 1
    with pytest.raises(UserError, match="checksum"):
        shared_adapter(manifest, arrays, TUNING, 30).__enter__()


def test_equal_tensors_of_another_scale_are_another_adapter() -> None:
    zeros = zero_adapter(empty_model(tiny_llava()), TUNING)
    other = TUNING.model_copy(update={"alpha": 2 * TUNING.alpha})
    with (
        shared_adapter(*zeros, TUNING, 30) as folder,
        shared_adapter(*zeros, TUNING, 30) as same,
        shared_adapter(*zeros, other, 30) as another,
    ):
        assert same == folder != another
        settings = json.loads((another / "adapter_config.json").read_text())
        assert settings["lora_alpha"] == other.alpha
    assert not folder.exists()
    assert not another.exists()


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest, engines: EnginePool) -> Any:
    return engines.get(tiny_llava(), request.param, TUNING)


@pytest.mark.real
def test_the_engine_runs_what_was_trained(
    engine: Any,
    store: ImageStore,
    run: Run,
    tmp_path: Path,
) -> None:
    """Before the first push the start policy; after each the merged export, at fewer bytes."""
    prompt = make_prompt(store, 90)
    response = (300, 301, 302, 303)
    start = HfPolicy(tiny_llava(), 256)
    previous = start.token_logprobs(prompt, response)
    logprobs = run(engine.token_logprobs(prompt, response))
    assert logprobs == pytest.approx(previous, abs=TOLERANCE)

    learner = learner_of(push="adapter")
    pairs = make_pairs(store, 6)
    learner.set_probe(one_answer(prompt, response))
    request = GenerationRequest("g", prompt, 1, 0.0, 10)
    first_version = engine.weight_version + 1
    for step in range(2):
        version = first_version + step
        # Fills the caches under the weights that are about to go.
        run(engine.generate([request]))
        learner.step(step, pairs)
        manifest, arrays = learner.publish(version)
        assert manifest is not None
        assert manifest.change_norm > 0
        report = run(engine.load_weights(manifest, arrays))
        assert (report.version, engine.weight_version) == (version, version)
        assert report.probe_error is not None
        assert report.probe_error < TOLERANCE

        export = tmp_path / str(step)
        # Adapters merged into the weights: what is shipped in the end.
        learner.export(export)
        written(learner)
        merged = HfPolicy(export, 256)
        logprobs = run(engine.token_logprobs(prompt, response))
        expected = merged.token_logprobs(prompt, response)
        assert logprobs == pytest.approx(expected, abs=TOLERANCE)
        # Or the test would not see a stale adapter.
        difference = np.subtract(logprobs, previous)
        assert np.abs(difference).max() > 1e-2
        previous = logprobs
        for visible in (None, (1, 8, 40)):
            shown = replace(request, visible_image_tokens=visible)
            (group,) = run(engine.generate([shown]))
            (completion,) = group.completions
            assert completion.token_ids == merged.greedy(prompt, 10, visible=visible)
            assert completion.max_weight_version == version

    # The same training, pushed as merged weights.
    whole, _ = learner_of().publish(1)
    assert whole is not None
    assert manifest.num_bytes < whole.num_bytes / 5


@pytest.mark.real
def test_what_is_in_flight_follows_a_push(
    engine: Any,
    store: ImageStore,
    run: Run,
    tmp_path: Path,
) -> None:
    learner = learner_of(push="adapter")
    pairs = make_pairs(store, 6)
    _, start = learner.publish(1)
    for step in range(4):
        learner.step(step, pairs)
    learner.export(tmp_path / "new")
    written(learner)
    old = HfPolicy(tiny_llava(), 256)
    new = HfPolicy(tmp_path / "new", 256)

    def publish_start(version: int) -> Any:
        manifest = WeightManifest(
            version,
            checksum(start),
            len(start),
            0,
            0.0,
        )
        return manifest, start

    check_answers_in_flight(
        engine,
        store,
        run,
        policies=(old, new),
        publish=(publish_start, learner.publish),
    )


@pytest.mark.real
@pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
def test_a_quantised_policy_is_pushed_whole(
    engines: EnginePool,
    store: ImageStore,
    run: Run,
) -> None:
    """An engine in full precision agrees with the learner on 4 bits."""
    engine = engines.get(tiny_llava(), "async")
    learner = learner_of(quantize="nf4")
    learner.set_probe(one_answer(make_prompt(store, 90), (300, 301, 302, 303)))
    learner.step(0, make_pairs(store, 6))
    # Dequantised weights with the adapters merged in.
    publication = learner.publish(engine.weight_version + 1)
    report = run(engine.load_weights(*publication))
    assert report.probe_error is not None
    assert report.probe_error < TOLERANCE

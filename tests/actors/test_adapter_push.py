"""Adapters alone into running engines: fewer bytes than merged weights, the same policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.adapter_push import adapter_shapes, zero_adapter
from actors.push_check import adapter_alone
from common.config import EngineOptions, Lora, Model, Rollout
from common.errors import UserError
from common.images import ImageStore
from common.protocols import GenerationRequest
from common.records import WeightManifest
from common.weights import checkpoint_shapes, checksum
from learner.learner import Learner
from tests.actors.hf_policy import HfPolicy
from tests.actors.in_flight import check_answers_in_flight
from tests.learner.helpers import LORA, make_pairs, run_config
from tests.tiny_families import tiny_llava_next, tiny_qwen
from tests.tiny_models import TinyLlava, make_prompt, tiny_llava

TUNING = Lora.model_validate({**LORA, "push": "adapter"})
TOLERANCE = 1e-4


def learner_of(**tuning: Any) -> Learner:
    learner = Learner(
        run_config(tuning={**LORA, **tuning}, optimizer={"lr": 1e-2, "warmup_steps": 0})
    )
    learner.start()
    return learner


@pytest.mark.parametrize("path", [tiny_llava, tiny_llava_next, tiny_qwen])
def test_engine_and_learner_mean_the_same_layers(path: Any) -> None:
    """Names and shapes that the engine expects are those that the learner sends, in each family."""
    learner = Learner(run_config(tuning=TUNING.model_dump(), model=path()))
    learner.start()
    manifest, arrays = learner.publish(1)
    assert manifest is not None and manifest.change_norm == 0
    expected = adapter_shapes(checkpoint_shapes(path()), TUNING)
    assert {name: array.shape for name, array in arrays.items()} == expected
    assert len(arrays) == 2 * 2 * 7
    adapter_alone(expected).check(manifest, arrays)


def test_an_adapter_that_is_not_the_manifests_or_the_models_is_refused() -> None:
    checkpoint = checkpoint_shapes(tiny_llava())
    expected = adapter_alone(adapter_shapes(checkpoint, TUNING))
    arrays = zero_adapter(checkpoint, TUNING)
    name = next(iter(arrays))
    without = {key: value for key, value in arrays.items() if key != name}
    other = {
        "without": without,
        "unknown": {**arrays, "base_model.model.lm_head.lora_A.weight": arrays[name]},
        "shape": {**arrays, name: np.zeros((1, 1), np.float32)},
    }
    for words, tensors in other.items():
        with pytest.raises(UserError, match=words):
            manifest = WeightManifest(1, checksum(tensors), len(tensors), 0, 0.0)
            expected.check(manifest, tensors)
    with pytest.raises(UserError, match="checksum"):
        expected.check(WeightManifest(1, "0" * 64, len(arrays), 0, 0.0), arrays)


@pytest.fixture(scope="module", params=["stepped", "async"])
def engine(request: pytest.FixtureRequest, run: Any) -> Iterator[Any]:
    from actors.engines import make_engine

    model = Model(path=str(tiny_llava()), max_length=256, tuning=TUNING)
    options = EngineOptions(block_size=32, kv_cache_bytes=32 << 20)
    rollout = Rollout(deterministic=request.param == "stepped", engine=options)

    async def make() -> Any:
        return make_engine(model, rollout, timeout_s=120, probe_tolerance=TOLERANCE)

    engine = run(make())
    yield engine
    run(engine.close())


@pytest.mark.real
def test_the_engine_runs_what_was_trained(
    engine: Any, store: ImageStore, run: Any, tmp_path: Path
) -> None:
    """Before the first push the start policy; after each the merged export, at fewer bytes."""
    prompt, response = make_prompt(store, 90), (300, 301, 302, 303)
    start = HfPolicy(tiny_llava(), 256)
    assert run(engine.token_logprobs(prompt, response)) == pytest.approx(
        start.token_logprobs(prompt, response), abs=TOLERANCE
    )
    learner, pairs = learner_of(push="adapter"), make_pairs(store, 6)
    learner.set_probe(prompt, response)
    request = GenerationRequest("g", prompt, 1, 0.0, 10)
    previous = start.token_logprobs(prompt, response)
    for step in range(2):
        run(
            engine.generate([request])
        )  # fills the caches under the weights that are about to go
        learner.step(step, pairs)
        manifest, arrays = learner.publish(step + 1)
        assert manifest is not None and manifest.change_norm > 0
        report = run(engine.load_weights(manifest, arrays))
        assert (report.version, engine.weight_version) == (step + 1, step + 1)
        assert report.probe_error is not None and report.probe_error < TOLERANCE
        learner.export(tmp_path / str(step))
        merged = HfPolicy(tmp_path / str(step), 256)
        found = run(engine.token_logprobs(prompt, response))
        assert found == pytest.approx(
            merged.token_logprobs(prompt, response), abs=TOLERANCE
        )
        assert max(abs(a - b) for a, b in zip(found, previous, strict=True)) > 1e-2
        previous = found
        for visible in (None, (1, 8, 40)):
            (group,) = run(
                engine.generate([replace(request, visible_image_tokens=visible)])
            )
            assert group.completions[0].token_ids == merged.greedy(
                prompt, 10, visible=visible
            )
            assert group.completions[0].max_weight_version == step + 1
    whole = learner_of()
    sent = whole.publish(1)[0]
    assert sent is not None and manifest.num_bytes < sent.num_bytes / 5


@pytest.mark.real
def test_what_is_in_flight_follows_a_push(
    engine: Any, store: ImageStore, run: Any, tmp_path: Path
) -> None:
    learner, pairs = learner_of(push="adapter"), make_pairs(store, 6)
    start = learner.publish(1)[1]
    for step in range(4):
        learner.step(step, pairs)
    learner.export(tmp_path / "new")
    policies = HfPolicy(tiny_llava(), 256), HfPolicy(tmp_path / "new", 256)

    def publish_start(version: int) -> Any:
        return WeightManifest(version, checksum(start), len(start), 0, 0.0), start

    check_answers_in_flight(
        engine, store, run, policies, (publish_start, learner.publish)
    )


@pytest.mark.real
@pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
def test_a_quantised_policy_is_pushed_whole(
    start_engine: Any, store: ImageStore, run: Any
) -> None:
    """An engine in full precision agrees with the learner on 4 bits."""
    # In a process of its own: the one that closes first takes the parallel state of in-process engines with it.
    engine, learner = start_engine(TinyLlava(), "async"), learner_of(quantize="nf4")
    learner.set_probe(make_prompt(store, 90), (300, 301, 302, 303))
    learner.step(0, make_pairs(store, 6))
    report = run(engine.load_weights(*learner.publish(engine.weight_version + 1)))
    assert report.probe_error is not None and report.probe_error < TOLERANCE

"""Engines that are compiled, as long as their model, or cannot start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.engine.factory import make_engine
from common.config import EngineOptions, Model, Rollout
from common.data.images import ImageStore
from common.errors import UserError
from common.protocols import GenerationRequest
from common.records import Dropped
from tests.actors.engines import Run, seeded_requests
from tests.actors.hf_policy import HfPolicy
from tests.tiny_models import TinyLlava, make_prompt, tiny_llava

pytestmark = pytest.mark.real
POSITIONS = 128
TOLERANCE = 1e-4


async def started(model: Model, rollout: Rollout) -> Any:
    return make_engine(model, rollout, timeout_s=120)


def stepped(**options: Any) -> Rollout:
    engine = EngineOptions(block_size=32, **options)
    return Rollout(deterministic=True, engine=engine)


def tokens_of(groups: list[Any]) -> list[tuple[int, ...]]:
    return [answer.token_ids for group in groups for answer in group.completions]


def test_a_compiled_engine_samples_as_an_eager_one_also_after_a_push(
    store: ImageStore, policy_path: Path, run: Run
) -> None:
    model = Model(path=str(policy_path), max_length=256)
    requests = seeded_requests(store, range(3), num_completions=2, max_tokens=12)
    eager = run(started(model, stepped()))
    expected = run(eager.generate(requests))
    run(eager.close())
    compiled = run(started(model, stepped(enforce_eager=False)))
    try:
        assert tokens_of(run(compiled.generate(requests))) == tokens_of(expected)
        hf = HfPolicy(policy_path, 256).perturb(5)
        prompt = make_prompt(store, 70)
        report = run(compiled.load_weights(*hf.publish(1, prompt)))
        assert report.probe_error < TOLERANCE
        request = GenerationRequest("g", prompt, 1, 0.0, 10)
        (group,) = run(compiled.generate([request]))
        assert group.completions[0].token_ids == hf.greedy(prompt, 10)
    finally:
        run(compiled.close())


def test_a_sequence_as_long_as_the_model_is_sampled_and_scored(
    store: ImageStore, run: Run
) -> None:
    """A model of P positions samples up to P tokens, and scores P; one more is counted as too long."""
    path = tiny_llava(TinyLlava(max_positions=POSITIONS))
    hf = HfPolicy(path, POSITIONS)
    engine = run(started(Model(path=str(path), max_length=POSITIONS), stepped()))
    try:
        prompt = make_prompt(store, 4)
        num_prompted = len(hf.encoder.encode_prompt(prompt).token_ids)
        room = POSITIONS - num_prompted
        answer = tuple(300 + place % 40 for place in range(room))
        logprobs = run(engine.token_logprobs(prompt, answer))
        expected = hf.token_logprobs(prompt, answer)
        assert logprobs == pytest.approx(expected, abs=TOLERANCE)
        # An answer of one token has none of its tokens in the prompt.
        (first,) = run(engine.token_logprobs(prompt, answer[:1]))
        assert first == pytest.approx(logprobs[0], abs=TOLERANCE)

        banned = GenerationRequest("g", prompt, 1, 1.0, 10 * POSITIONS, seed=1)
        (group,) = run(engine.generate([banned]))
        (sampled,) = group.completions
        assert sampled.finish_reason == "stop" or len(sampled.token_ids) == room

        text = hf.encoder.decode(answer) * 2
        (too_long,) = run(engine.score([(prompt, text)]))
        assert isinstance(too_long, Dropped)
        assert too_long.reason == "prompt_too_long"
    finally:
        run(engine.close())


def edited(folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(tiny_llava(), folder)
    file = folder / "config.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    return folder


def refusal(run: Run, model: Model, rollout: Rollout) -> str:
    with pytest.raises(UserError) as refused:
        run(started(model, rollout))
    line = str(refused.value)
    assert "\n" not in line and "root cause" not in line
    return line


def test_a_model_that_vllm_does_not_know(tmp_path: Path, run: Run) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["architectures"] = ["NobodyKnowsThis"]

    folder = edited(tmp_path / "model", rename)
    line = refusal(run, Model(path=str(folder), max_length=256), stepped())
    assert "architectures ['NobodyKnowsThis'] are not supported" in line
    assert line.endswith("look at architectures in config.json")


def test_heads_that_cannot_be_split(policy_path: Path, run: Run) -> None:
    model = Model(path=str(policy_path), max_length=256)
    line = refusal(run, model, stepped(tensor_parallel_size=3))
    assert "heads (2) must be divisible by tensor parallel size (3)" in line
    assert "set engine.tensor_parallel_size" in line


def test_an_engines_own_process_says_why_it_cannot_start(
    policy_path: Path, run: Run
) -> None:
    """The cause is raised there; here vLLM says no more than that there is one."""
    model = Model(path=str(policy_path), max_length=256)
    small = Rollout(engine=EngineOptions(kv_cache_bytes=1 << 16))
    line = refusal(run, model, small)
    assert "got: No available memory for the cache blocks; raise" in line
    assert "raise engine.kv_cache_bytes" in line

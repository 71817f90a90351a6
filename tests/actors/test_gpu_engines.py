"""What only CUDA can show: vLLM's second model runner, graphs, and parts on several GPUs."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from actors.engine.factory import make_engine
from common.config import EngineOptions, Model, Rollout
from common.data.images import ImageStore
from tests.actors.engines import Run, seeded_requests
from tests.actors.hf_policy import HfPolicy
from tests.tiny_models import TinyLlava, make_prompt, tiny_llava

pytestmark = [pytest.mark.gpu, pytest.mark.real]
POSITIONS = 128
TOLERANCE = 0.05
"""Nats: bfloat16 here, float32 in the reference."""


async def started(**options: Any) -> Any:
    path = tiny_llava(TinyLlava(max_positions=POSITIONS))
    model = Model(path=str(path), dtype="bfloat16", max_length=POSITIONS)
    engine = EngineOptions(kv_cache_bytes=64 << 20, **options)
    split = engine.tensor_parallel_size
    rollout = Rollout(num_gpus=split, engine=engine)
    return make_engine(model, rollout, timeout_s=300)


@pytest.fixture(
    params=[
        pytest.param({"enforce_eager": True}, id="eager"),
        pytest.param({"enforce_eager": False}, id="compiled"),
        pytest.param(
            {"enforce_eager": False, "tensor_parallel_size": 2},
            id="split",
            marks=pytest.mark.skipif(
                torch.cuda.device_count() < 2, reason="needs two GPUs"
            ),
        ),
    ]
)
def gpu_engine(request: pytest.FixtureRequest, run: Run) -> Any:
    engine = run(started(**request.param))
    yield engine
    run(engine.close())


def test_it_scores_at_all_positions_and_follows_a_push(
    gpu_engine: Any, store: ImageStore, run: Run
) -> None:
    # Nothing of ours keeps torch from compiling.
    assert os.environ.get("TORCH_COMPILE_DISABLE") != "1"
    assert os.environ.get("TORCHDYNAMO_DISABLE") != "1"
    path = tiny_llava(TinyLlava(max_positions=POSITIONS))
    prompt = make_prompt(store, 4)
    hf = HfPolicy(path, POSITIONS)
    room = POSITIONS - len(hf.encoder.encode_prompt(prompt).token_ids)
    answer = tuple(300 + place % 40 for place in range(room))

    logprobs = run(gpu_engine.token_logprobs(prompt, answer))
    expected = hf.token_logprobs(prompt, answer)
    assert logprobs == pytest.approx(expected, abs=10 * TOLERANCE)
    requests = seeded_requests(store, range(4), num_completions=2, max_tokens=12)
    groups = run(gpu_engine.generate(requests))
    assert all(len(group.completions) == 2 for group in groups)

    hf.perturb(3)
    hf.model.to(torch.bfloat16)
    manifest, arrays = hf.publish(1)
    report = run(gpu_engine.load_weights(manifest, arrays))
    assert report.version == 1
    hf.model.to(torch.float32)
    pushed = run(gpu_engine.token_logprobs(prompt, answer))
    expected = hf.token_logprobs(prompt, answer)
    assert pushed == pytest.approx(expected, abs=10 * TOLERANCE)
    assert pushed != pytest.approx(logprobs, abs=10 * TOLERANCE)

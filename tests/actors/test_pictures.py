"""Pictures within limits, and several of them in a prompt: the engine sees what transformers and the learner see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from actors.engine.arguments import engine_arguments
from common.chat import ChatEncoder, encoder_of
from common.config import Model, Rollout
from common.data.images import ImageStore
from common.protocols import GenerationRequest
from common.records import Dropped, Message, Part, Prompt, RolloutGroup
from tests.actors.engines import MAX_LENGTH, EnginePool, Run
from tests.tiny_families import tiny_llava_next, tiny_qwen, tiny_qwen3
from tests.tiny_models import picture, tiny_llava

MAX_PIXELS = 12_000
SIZES = (
    [(400, 300)],
    [(30, 40)],
    [(400, 300), (64, 64)],
    [(90, 40), (400, 300), (90, 40)],
)
"""Of the pictures of a prompt each; 400 x 300 is beyond the limit."""


def prompt_of(store: ImageStore, name: str, sizes: list[tuple[int, int]]) -> Prompt:
    """Words stand before, between and behind the pictures."""
    parts = [Part("text", "Look.")]
    images = []
    for number, size in enumerate(sizes):
        images.append(store.add(picture(number, 200).resize(size)))
        parts += [Part("image"), Part("text", " and ")]
    parts.append(Part("text", "Describe the image."))
    return Prompt(name, (Message("user", tuple(parts)),), tuple(images))


def model_of(path: Path, **changes: Any) -> Model:
    settings = {"path": str(path), "max_length": MAX_LENGTH, "max_pixels": MAX_PIXELS}
    return Model(**(settings | changes))


def logprobs_of(
    net: Any, encoder: ChatEncoder, prompt: Prompt, answer: tuple[int, ...]
) -> list[float]:
    """transformers' log-probs of an answer behind the learner's inputs."""
    encoded = encoder.encode_prompt(prompt)
    ids = torch.tensor([(*encoded.token_ids, *answer)])
    inputs = dict(encoded.model_inputs)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = (ids == encoder.image_token_id).int()
    with torch.no_grad():
        logits = net(input_ids=ids, **inputs).logits[0]
    predicting = logits[-len(answer) - 1 : -1].log_softmax(-1)
    picked = predicting.gather(1, torch.tensor(answer)[:, None])
    return [float(value) for value in picked[:, 0]]


@pytest.mark.real
@pytest.mark.parametrize("build", [tiny_llava, tiny_llava_next, tiny_qwen, tiny_qwen3])
def test_tokens_and_logprobs_equal_transformers_with_a_limit_in_force(
    build: Callable[[], Path], store: ImageStore, engines: EnginePool, run: Run
) -> None:
    folder = build()
    engine = engines.get(folder, "stepped", max_pixels=MAX_PIXELS)
    encoder = encoder_of(model_of(folder))
    net = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    requests = []
    for number, sizes in enumerate(SIZES):
        prompt = prompt_of(store, f"p{number}", sizes)
        requests.append(GenerationRequest(prompt.id, prompt, 1, 0.0, 6))
    # One more than the engine was told to expect.
    too_many = prompt_of(store, "many", [(30, 40)] * 9)
    requests.append(GenerationRequest("many", too_many, 1, 0.0, 6))
    *groups, refused = run(engine.generate(requests))
    for request, group in zip(requests, groups, strict=False):
        assert isinstance(group, RolloutGroup), group
        prompt = request.prompt
        assert group.prompt_token_ids == encoder.encode_prompt(prompt).token_ids
        answer = group.completions[0].token_ids
        expected = logprobs_of(net.eval(), encoder, prompt, answer)
        logprobs = run(engine.token_logprobs(prompt, answer))
        assert logprobs == pytest.approx(expected, abs=1e-4)
    assert isinstance(refused, Dropped)
    assert refused.reason == "image_count"
    assert "max_images = 8" in refused.detail


def test_the_engine_is_told_what_the_learners_processor_is_told() -> None:
    arguments = {"image_seq_length": 4}
    model = model_of(tiny_qwen(), max_images=3, mm_processor_kwargs=arguments)
    told = engine_arguments(model, Rollout(), encoder_of(model), 0)
    assert told["limit_mm_per_prompt"]["image"] == 3
    size = {"shortest_edge": 784, "longest_edge": MAX_PIXELS}
    assert told["mm_processor_kwargs"] == {**arguments, "size": size}
    # LLaVA's processor takes no limit: it gets smaller pictures.
    model = model_of(tiny_llava())
    told = engine_arguments(model, Rollout(), encoder_of(model), 0)
    assert told["mm_processor_kwargs"] is None

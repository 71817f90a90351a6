"""What goes to the engine and what comes back is checked, without an engine."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import actors.engine.arguments
from actors.bdhs.vision_features import VisionFeatures
from actors.engine.arguments import engine_arguments
from actors.engine.requests import PromptBuilder, sampling_params
from actors.engine.results import to_group
from common.chat import ChatEncoder
from common.config import Model, Rollout
from common.data.images import ImageStore
from common.errors import Refused, UserError
from common.protocols import GenerationRequest
from common.records import Dropped, RolloutGroup
from tests.tiny_models import make_prompt, tiny_llava


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(tiny_llava(), 256)


def test_a_sequence_that_is_not_the_processors_is_an_error(
    encoder: ChatEncoder,
    store: ImageStore,
) -> None:
    """Each picture size is compared token by token once, then by its number of image tokens."""
    builder = PromptBuilder(encoder, VisionFeatures(encoder, torch.float32))
    prompt = make_prompt(store, 1)
    built = builder.build(prompt, ())
    right = list(encoder.encode_prompt(prompt).token_ids)
    place = right.index(encoder.image_token_id)
    # Wrong in number, and wrong in text only.
    one_fewer = right[:place] + right[place + 1 :]
    other_text = [right[0] + 1, *right[1:]]

    for wrong, num_tokens in ((one_fewer, 63), (other_text, 64)):
        message = (
            rf"{prompt.id}: .* with 64 image tokens, got another one with {num_tokens}"
        )
        with pytest.raises(RuntimeError, match=message):
            builder.check(built, wrong)
    # From now on the number of tokens of this size is known, and the texts are not compared.
    builder.check(built, right)
    for wrong in (one_fewer, [*right, 5]):
        with pytest.raises(RuntimeError, match="expected the processor's sequence"):
            builder.check(builder.build(prompt, ()), wrong)
    with pytest.raises(Refused, match="256"):
        builder.check(built, [5] * 257)


def finished(
    token_ids: list[int],
    prompt_token_ids: list[int],
    logprobs: list[dict[int, Any]] | None = None,
) -> Any:
    """vLLM's output of one answer, begun before the first push and ended after push 3."""
    sequence = SimpleNamespace(
        token_ids=token_ids,
        weight_versions=[
            SimpleNamespace(version="default"),
            SimpleNamespace(version="3"),
        ],
        finish_reason="stop",
        text="",
        logprobs=logprobs,
    )
    return SimpleNamespace(outputs=[sequence], prompt_token_ids=prompt_token_ids)


def test_an_answer_with_a_media_token_is_dropped(
    encoder: ChatEncoder,
    store: ImageStore,
) -> None:
    request = GenerationRequest(
        "g",
        make_prompt(store, 1),
        1,
        1.0,
        8,
    )
    image = encoder.image_token_id
    output = finished([300, image, 301], [5, image])
    dropped = to_group(request, output, encoder)
    assert isinstance(dropped, Dropped)
    assert (dropped.id, dropped.reason) == ("g", "media_token")
    output = finished([300, 301], [5, image, image])
    group = to_group(request, output, encoder)
    assert isinstance(group, RolloutGroup)
    assert group.num_image_tokens == 2
    (answer,) = group.completions
    assert answer.min_weight_version == 0
    assert answer.max_weight_version == 3


def test_log_probs_of_sampled_tokens_come_when_they_are_asked_for(
    encoder: ChatEncoder,
    store: ImageStore,
) -> None:
    """vLLM gives the likeliest token beside the sampled one where they differ."""
    asked = GenerationRequest("g", make_prompt(store, 1), 1, 1.0, 8, logprobs=True)
    assert sampling_params(asked, 8, ()).logprobs == 0
    places = [
        {300: SimpleNamespace(logprob=-0.5)},
        {7: SimpleNamespace(logprob=-0.1), 301: SimpleNamespace(logprob=-2.5)},
    ]
    group = to_group(asked, finished([300, 301], [5], places), encoder)
    assert isinstance(group, RolloutGroup)
    assert group.completions[0].token_logprobs == (-0.5, -2.5)

    not_asked = replace(asked, logprobs=False)
    assert sampling_params(not_asked, 8, ()).logprobs is None
    group = to_group(not_asked, finished([300, 301], [5]), encoder)
    assert isinstance(group, RolloutGroup)
    assert group.completions[0].token_logprobs is None


def test_the_cuda_build_without_a_gpu_says_what_to_do(
    encoder: ChatEncoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda_platform = SimpleNamespace(is_cpu=lambda: False)
    monkeypatch.setattr(actors.engine.arguments, "current_platform", cuda_platform)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    model = Model(path=str(tiny_llava()))
    message = r"rollout\.num_gpus: expected a GPU .* set rollout\.num_gpus = 1"
    with pytest.raises(UserError, match=message) as caught:
        engine_arguments(model, Rollout(), encoder, 0)
    assert "\n" not in str(caught.value)
    # With a GPU the same configuration starts.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    arguments = engine_arguments(
        model,
        Rollout(),
        encoder,
        0,
    )
    assert "gpu_memory_utilization" in arguments
